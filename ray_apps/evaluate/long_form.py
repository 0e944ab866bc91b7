"""Every figure of an evaluation as a line of `figures.csv`: what it is of, the figure, its bounds, and of how many."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ray_apps.evaluate.bootstrap import Estimate
from ray_apps.evaluate.harness import Benchmarks
from ray_apps.evaluate.results import JudgeResults, Results
from ray_apps.evaluate.tables import ALL, difference, task_scores

Z = 1.959964
"""Standard errors of a normal figure to the bounds of 95 %."""


Of = tuple[str, str, str, str, str]


class Line(NamedTuple):
    """`against`: the other model, or the other judge of an agreement. Empty is what does not apply."""

    judge: str
    kind: str
    model: str
    against: str
    category: str
    figure: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None


def figures_csv(results: Results, benchmarks: Sequence[Benchmarks]) -> str:
    """The text of the file, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Line._fields)
    for line in _lines(results, benchmarks):
        writer.writerow([_said(value) if not isinstance(value, str) else value for value in line])
    return text.getvalue()


def _said(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.6g}"


def _lines(results: Results, benchmarks: Sequence[Benchmarks]) -> Iterator[Line]:
    for judge in results.judges:
        yield from _pairs(judge)
        yield from _scores(judge)
        yield from _ratings(judge)
        yield from _conduct(judge)
    yield from _agreements(results)
    yield from _benchmarks(benchmarks, results.baseline)


def _line(of: Of, figure: str, estimate: Estimate | None, n: int | None) -> Line:
    if estimate is None:
        return Line(*of, figure, None, None, None, n)
    return Line(*of, figure, estimate.value, estimate.low, estimate.high, n)


def _plain(of: Of, figure: str, value: float | None, n: int | None = None) -> Line:
    return Line(*of, figure, value, None, None, n)


def _pairs(judge: JudgeResults) -> Iterator[Line]:
    for one in judge.pairs:
        of = (judge.judge, "pair", one.a, one.b, one.category or ALL)
        count = one.wins + one.ties + one.losses
        for name in ("wins", "ties", "losses"):
            yield _plain(of, name, getattr(one, name), count)
        yield _plain(of, "left_out", one.num_left_out, count + one.num_left_out)
        yield _line(of, "win_rate", one.win_rate, count)
        yield _line(of, "adjusted_win_rate", one.adjusted, count)
        yield _line(of, "better_or_equal", one.better_or_equal, count)
        yield _plain(of, "sign_test_p", one.sign_p, count)


def _scores(judge: JudgeResults) -> Iterator[Line]:
    for score in judge.scores:
        of = (judge.judge, "single", score.model, "", score.category or ALL)
        yield _line(of, "mean_score", score.mean, score.num_questions)
    for one in judge.relative:
        of = (judge.judge, "single", one.model, one.baseline, ALL)
        yield _line(of, "relative_score", one.ratio, one.num_questions)


def _ratings(judge: JudgeResults) -> Iterator[Line]:
    for rating in judge.ratings:
        of = (judge.judge, "rating", rating.model, "", ALL)
        yield Line(*of, "bradley_terry", rating.rating, rating.low, rating.high, rating.num_battles)
    for (model, other), (rate, count) in sorted(judge.win_rates.items()):
        yield _plain((judge.judge, "rating", model, other, ALL), "pairwise_win_rate", rate, count)


def _conduct(judge: JudgeResults) -> Iterator[Line]:
    of, conduct = (judge.judge, "conduct", "", "", ALL), judge.conduct
    for name in ("verdicts", "again", "out_of_form", "failed"):
        yield _plain(of, name, getattr(conduct, f"num_{name}"))
    for name in ("prompt_tokens", "completion_tokens", "cost"):
        yield _plain(of, name, getattr(conduct, name))
    yield _plain(of, "self_agreement", conduct.self_agreement, conduct.num_repeated)
    if conduct.position:
        for name in ("consistent", "first", "second"):
            yield _line(of, f"position_{name}", getattr(conduct.position, name), conduct.position.num_comparisons)
    if conduct.length:
        yield _line(of, "longer_wins", conduct.length.longer_wins, conduct.length.num_decided)
        yield _plain(of, "length_kendall_tau", conduct.length.kendall_tau, conduct.length.num_comparisons)


def _agreements(results: Results) -> Iterator[Line]:
    for one, other, found in results.agreements:
        of = (one, "agreement", "", other, ALL)
        yield _line(of, "equal", found.equal, found.num_items)
        yield _line(of, "equal_decided", found.equal_decided, found.num_decided)
        yield _line(of, "kappa", found.kappa, found.num_items)


def _benchmarks(benchmarks: Sequence[Benchmarks], baseline: str | None) -> Iterator[Line]:
    found = {one.model: task_scores(one) for one in benchmarks}
    base = found.get(baseline, {}) if baseline is not None else {}
    for model, scores in found.items():
        for key, score in scores.items():
            own = ("", "benchmark", model, "", score.task)
            yield _normal(own, score.metric, score.value, score.stderr, score.num_samples)
            if baseline is not None and model != baseline and key in base:
                against = ("", "benchmark", model, baseline, score.task)
                ahead = difference(score, base[key])
                yield _normal(against, f"{score.metric}_difference", *ahead, score.num_samples)


def _normal(of: Of, figure: str, value: float, stderr: float | None, n: int) -> Line:
    if stderr is None:
        return _plain(of, figure, value, n)
    return Line(*of, figure, value, value - Z * stderr, value + Z * stderr, n)
