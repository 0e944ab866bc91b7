"""What verdicts and scores come to: win rates and relative scores, with bounds.

Knows plain verdicts and numbers of one judge, neither files nor endpoints. Lists of figures are empty where there is
nothing to count; a single figure that would rest on nothing is a ValueError. No figure is NaN: None has no value.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from ray_apps.evaluate.bootstrap import BOOTSTRAP, Bootstrap, Estimate, Floats, ratio, share
from ray_apps.evaluate.records import Outcome

SIGN: dict[Outcome, int] = {"a": 1, "tie": 0, "b": -1}


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
    rows = by_question(
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


def by_question(values: Iterable[tuple[str, Sequence[float]]]) -> Floats:
    """Sums of rows, (k,), by question: (questions, k)."""
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
