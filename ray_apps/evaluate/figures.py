"""What verdicts and scores come to: win rates, relative scores, and what a judge leans to, with bounds.

Knows plain verdicts and numbers of one judge, neither files nor endpoints. Lists of figures are empty where there is
nothing to count; a single figure that would rest on nothing is a ValueError. No figure is NaN: None has no value.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from ray_apps.evaluate.records import Outcome

Floats = npt.NDArray[np.float64]
SIGN: dict[Outcome, int] = {"a": 1, "tie": 0, "b": -1}


@dataclass(frozen=True)
class Estimate:
    """A figure and its bounds: `low` <= `value` <= `high`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bootstrap:
    """Percentile bootstrap (Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979).

    Units such as questions are drawn whole, so that what hangs together stays together. The same data and seed have
    the same bounds, in whatever order they come. Units that are all alike have bounds of no width.
    """

    num_resamples: int = 1000
    level: float = 0.95
    """How often the bounds should hold the true value."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_resamples < 1:
            raise ValueError(f"num_resamples: {self.num_resamples} is not positive")
        if not 0 < self.level < 1:
            raise ValueError(f"level: {self.level} is not between 0 and 1")

    def generator(self) -> np.random.Generator:
        """A fresh source of chance."""
        return np.random.default_rng(self.seed)

    def draws(self, counts: Floats) -> Floats:
        """How often each kind of unit is drawn, (num_resamples, kinds), where it occurs `counts` times, (kinds,)."""
        num_units = int(counts.sum())
        drawn = self.generator().multinomial(num_units, counts / num_units, self.num_resamples)
        return np.asarray(drawn, np.float64)

    def estimate(self, rows: Floats, statistic: Callable[[Floats], Floats]) -> Estimate | None:
        """`statistic` of the sums over all units of `rows`, (units, k).

        `statistic` maps sums (..., k) to (...), and to NaN where it is not defined: such resamples are left out. None
        if it is not defined for the units themselves.
        """
        value = float(statistic(rows.sum(axis=0)))
        if math.isnan(value):
            return None
        kinds, counts = np.unique(rows, axis=0, return_counts=True)
        return self.around(value, statistic(self.draws(counts.astype(np.float64)) @ kinds))

    def around(self, value: float, samples: Floats) -> Estimate:
        """`value` with bounds from what it was in the resamples, widened to hold it where these lean to one side."""
        defined = samples[~np.isnan(samples)]
        if not len(defined):
            return Estimate(value, value, value)
        low, high = np.quantile(defined, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Estimate(value, min(value, float(low)), max(value, float(high)))


BOOTSTRAP = Bootstrap()


def ratio(top: Floats, bottom: Floats) -> Floats:
    """The quotients, NaN where `bottom` is 0. Both are of one shape."""
    quotients = np.full(np.shape(bottom), np.nan)
    np.divide(top, bottom, out=quotients, where=np.asarray(bottom) != 0)
    return quotients


def share(*columns: int) -> Callable[[Floats], Floats]:
    """A statistic: what these columns are of all."""
    return lambda sums: ratio(sums[..., list(columns)].sum(axis=-1), sums.sum(axis=-1))


@dataclass(frozen=True)
class Comparison:
    """Two models on one question, judged once in each order.

    `a_first`, `b_first`: the verdict where that model stood first, in terms of the models and not of places; None where
    the judge gave none. `lengths`: of the two answers, in any unit. Several of one question may differ in what is not
    named here, such as the choice or the repetition.
    """

    question_id: str
    category: str
    a: str
    b: str
    a_first: Outcome | None
    b_first: Outcome | None
    lengths: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.a == self.b:
            raise ValueError(f"question {self.question_id}: {self.a!r} is compared with itself")

    @property
    def outcome(self) -> Outcome | None:
        """A win if both orders agree on it, else a tie; None if a verdict is missing.

        As in Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena" (2023).
        """
        if self.a_first is None or self.b_first is None:
            return None
        return self.a_first if self.a_first == self.b_first else "tie"

    def swapped(self) -> "Comparison":
        """The same with the names a and b exchanged."""
        other: dict[Outcome | None, Outcome | None] = {"a": "b", "b": "a", "tie": "tie", None: None}
        lengths = None if self.lengths is None else (self.lengths[1], self.lengths[0])
        a_first, b_first = other[self.b_first], other[self.a_first]
        return replace(self, a=self.b, b=self.a, a_first=a_first, b_first=b_first, lengths=lengths)


def battles(comparisons: Iterable[Comparison]) -> Iterator[tuple[str, str, float]]:
    """Pairs of models and what the first is worth, as `ray_apps.votes.battles` has them; without those left out."""
    for one in comparisons:
        if one.outcome is not None:
            yield one.a, one.b, (1 + SIGN[one.outcome]) / 2


@dataclass(frozen=True)
class PairFigures:
    """How `a` does against `b`. `category`: None for all together.

    `num_left_out`: comparisons that lack a verdict. Of the others, `win_rate` are won, `better_or_equal` won or tied,
    and `adjusted` counts a tie as half a win; None where there are no others. `sign_p`: see `sign_test`, over
    questions: of several comparisons of one, the majority.
    """

    a: str
    b: str
    category: str | None
    wins: int
    ties: int
    losses: int
    num_left_out: int
    win_rate: Estimate | None
    adjusted: Estimate | None
    better_or_equal: Estimate | None
    sign_p: float


def pair_figures(
    comparisons: Iterable[Comparison], baseline: str | None = None, bootstrap: Bootstrap = BOOTSTRAP
) -> list[PairFigures]:
    """Every pair once, all together and then by category; the units are questions.

    `b` is the baseline where that is one of the two, else `a` comes first in the alphabet.
    """
    by_pair: dict[tuple[str, str], list[Comparison]] = {}
    for one in comparisons:
        is_turned = baseline == one.a or (baseline != one.b and one.a > one.b)
        turned = one.swapped() if is_turned else one
        by_pair.setdefault((turned.a, turned.b), []).append(turned)
    return [figures for _, found in sorted(by_pair.items()) for figures in _by_category(found, bootstrap)]


def _by_category(found: Sequence[Comparison], bootstrap: Bootstrap) -> Iterator[PairFigures]:
    yield _pair(found, None, bootstrap)
    for category in sorted({one.category for one in found}):
        yield _pair([one for one in found if one.category == category], category, bootstrap)


def _pair(found: Sequence[Comparison], category: str | None, bootstrap: Bootstrap) -> PairFigures:
    rows = _by_question(
        (one.question_id, [one.outcome == outcome for outcome in SIGN]) for one in found if one.outcome is not None
    )
    wins, ties, losses = (int(count) for count in rows.sum(axis=0)) if len(rows) else (0, 0, 0)
    return PairFigures(
        *(found[0].a, found[0].b, category, wins, ties, losses, len(found) - wins - ties - losses),
        win_rate=bootstrap.estimate(rows, share(0)) if len(rows) else None,
        adjusted=bootstrap.estimate(rows, _adjusted) if len(rows) else None,
        better_or_equal=bootstrap.estimate(rows, share(0, 1)) if len(rows) else None,
        sign_p=_sign_p(rows) if len(rows) else 1.0,
    )


def _adjusted(sums: Floats) -> Floats:
    return ratio(sums[..., 0] + sums[..., 1] / 2, sums.sum(axis=-1))


def _sign_p(rows: Floats) -> float:
    lead = rows[:, 0] - rows[:, 2]
    return sign_test(int((lead > 0).sum()), int((lead < 0).sum()))


def _by_question(values: Iterable[tuple[str, Sequence[float]]]) -> Floats:
    """Sums by question, (questions, k)."""
    sums: dict[str, Floats] = {}
    for question_id, row in values:
        sums[question_id] = sums.get(question_id, 0) + np.asarray(row, np.float64)
    return np.array(list(sums.values()), np.float64)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p of the exact sign test (Dixon & Mood, 1946), ties left out; 1 if there were only ties.

    Raises:
        ValueError: a count is negative.
    """
    if min(wins, losses) < 0:
        raise ValueError(f"there cannot be {wins} wins and {losses} losses")
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


@dataclass(frozen=True)
class Score:
    """What a judge gave one answer by itself; several of one question may differ in the turn or the repetition."""

    question_id: str
    category: str
    model: str
    score: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise ValueError(f"question {self.question_id}, {self.model}: {self.score} is no score")


@dataclass(frozen=True)
class ScoreFigures:
    """The mean over questions of a model, each question's own mean counting once. `category`: None for all."""

    model: str
    category: str | None
    mean: Estimate
    num_questions: int
    num_scores: int


def score_figures(scores: Sequence[Score], bootstrap: Bootstrap = BOOTSTRAP) -> list[ScoreFigures]:
    """Every model in the order of names, all together and then by category; the units are questions."""
    found = []
    for model in sorted({one.model for one in scores}):
        own = [one for one in scores if one.model == model]
        found.append(_mean(own, None, bootstrap))
        for category in sorted({one.category for one in own}):
            found.append(_mean([one for one in own if one.category == category], category, bootstrap))
    return found


def _mean(scores: Sequence[Score], category: str | None, bootstrap: Bootstrap) -> ScoreFigures:
    means = _question_means(scores, scores[0].model)
    rows = np.array([(mean, 1) for mean in means.values()], np.float64)
    estimate = bootstrap.estimate(rows, _quotient)
    assert estimate is not None
    return ScoreFigures(scores[0].model, category, estimate, len(means), len(scores))


def _quotient(sums: Floats) -> Floats:
    return ratio(sums[..., 0], sums[..., 1])


def _question_means(scores: Iterable[Score], model: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for one in scores:
        if one.model == model:
            found.setdefault(one.question_id, []).append(one.score)
    return {question_id: math.fsum(given) / len(given) for question_id, given in found.items()}


@dataclass(frozen=True)
class RelativeScore:
    """`total` over `baseline_total`, over the questions of which both have scores.

    A question with several scores counts with their mean. `num_left_out`: questions of which only one has any.
    """

    model: str
    baseline: str
    total: float
    baseline_total: float
    ratio: Estimate
    num_questions: int
    num_left_out: int


def relative_score(
    scores: Sequence[Score], model: str, baseline: str, bootstrap: Bootstrap = BOOTSTRAP
) -> RelativeScore:
    """What a model scores for every point of the baseline's; the units are questions, each with both models' scores.

    As in the announcement of Vicuna (Chiang et al., 2023).

    Raises:
        ValueError: the two have no question in common, or the baseline has no points.
    """
    ours, theirs = _question_means(scores, model), _question_means(scores, baseline)
    common = sorted(ours.keys() & theirs.keys())
    rows = np.array([(ours[question_id], theirs[question_id]) for question_id in common], np.float64)
    if not common:
        raise ValueError(f"{model} and {baseline} have no scored question in common")
    estimate = bootstrap.estimate(rows, _quotient)
    if estimate is None:
        raise ValueError(f"{baseline} has no points, so that nothing can be relative to it")
    total, baseline_total = rows.sum(axis=0)
    num_left_out = len(ours.keys() ^ theirs.keys())
    return RelativeScore(model, baseline, float(total), float(baseline_total), estimate, len(common), num_left_out)


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
    rows = _by_question((question_id, [gain == 0, gain > 0, gain < 0]) for question_id, gain in gains)
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
    rows = _by_question((question_id, [lead > 0, lead < 0]) for question_id, lead in decided)
    longer_wins = bootstrap.estimate(rows, share(0)) if decided else None
    tau = _kendall_tau([difference for _, difference, _ in found], [sign for _, _, sign in found])
    return LengthBias(longer_wins, tau, len(decided), len(found), len(comparisons) - len(found))


def _kendall_tau(differences: Sequence[int], signs: Sequence[int]) -> float | None:
    """Over all comparisons and their mirror images, so that nothing hangs on who is called a."""
    if not any(differences) or not any(signs):
        return None
    mirrored = [[*values, *(-value for value in values)] for values in (differences, signs)]
    return float(stats.kendalltau(*mirrored).statistic)
