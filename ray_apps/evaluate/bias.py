"""What a judge leans to: the place of an answer, its length."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from ray_apps.evaluate.bootstrap import BOOTSTRAP, Bootstrap, Estimate, share
from ray_apps.evaluate.figures import SIGN, Comparison, by_question


@dataclass(frozen=True)
class PositionBias:
    """Of comparisons judged in both orders: where the judge says the same, and whom it favours where it does not.

    The three shares come to 1. `first`, `second`: the place that gains, be it from a tie. `num_left_out`: comparisons
    that lack a verdict.
    """

    consistent: Estimate
    first: Estimate
    second: Estimate
    num_comparisons: int
    num_left_out: int


def position_bias(comparisons: Sequence[Comparison], bootstrap: Bootstrap = BOOTSTRAP) -> PositionBias:
    """How far verdicts follow the place, as in table 2 of Zheng et al. (2023); the units are questions.

    Raises:
        ValueError: nothing was judged in both orders.
    """
    gains = [
        (one.question_id, SIGN[one.a_first] - SIGN[one.b_first])
        for one in comparisons
        if one.a_first is not None and one.b_first is not None
    ]
    if not gains:
        raise ValueError("no comparison was judged in both orders")
    rows = by_question((question_id, [gain == 0, gain > 0, gain < 0]) for question_id, gain in gains)
    consistent, first, second = (bootstrap.estimate(rows, share(column)) for column in range(3))
    assert consistent is not None
    assert first is not None
    assert second is not None
    return PositionBias(consistent, first, second, len(gains), len(comparisons) - len(gains))


@dataclass(frozen=True)
class LengthBias:
    """How length and outcome go together; not bias by itself, for a longer answer may well be better.

    `longer_wins`: of `num_decided` comparisons that were won, by an answer that was not just as long as the other, the
    share that the longer one won; None if there are none. `kendall_tau`: tau-b (Kendall, 1945) of the difference in
    length and the outcome, a tie lying between; None if one of them never varies. `num_left_out`: comparisons that lack
    a verdict or a length.
    """

    longer_wins: Estimate | None
    kendall_tau: float | None
    num_decided: int
    num_comparisons: int
    num_left_out: int


def length_bias(comparisons: Sequence[Comparison], bootstrap: Bootstrap = BOOTSTRAP) -> LengthBias:
    """How far outcomes follow length. Which of two is called a makes no difference; the units are questions.

    Raises:
        ValueError: there is no comparison with an outcome and lengths.
    """
    found = [
        (one.question_id, one.lengths[0] - one.lengths[1], SIGN[one.outcome])
        for one in comparisons
        if one.outcome is not None and one.lengths is not None
    ]
    if not found:
        raise ValueError("no comparison has both an outcome and lengths")
    decided = [(question_id, difference * sign) for question_id, difference, sign in found if difference * sign]
    rows = by_question((question_id, [lead > 0, lead < 0]) for question_id, lead in decided)
    longer_wins = bootstrap.estimate(rows, share(0)) if decided else None
    tau = _kendall_tau([difference for _, difference, _ in found], [sign for _, _, sign in found])
    return LengthBias(longer_wins, tau, len(decided), len(found), len(comparisons) - len(found))


def _kendall_tau(differences: Sequence[int], signs: Sequence[int]) -> float | None:
    """Over all comparisons and their mirror images, so that nothing hangs on who is called a."""
    if not any(differences) or not any(signs):
        return None
    mirrored = [[*values, *(-value for value in values)] for values in (differences, signs)]
    return float(stats.kendalltau(*mirrored).statistic)
