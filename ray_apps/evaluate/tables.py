"""The figures of an evaluation as tables of words: the same ones stand on the page and in Markdown."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ray_apps.evaluate.bootstrap import Estimate
from ray_apps.evaluate.figures import PairFigures, battles
from ray_apps.evaluate.harness import Benchmarks
from ray_apps.evaluate.harness import Score as TaskScore
from ray_apps.evaluate.ratings import components
from ray_apps.evaluate.records import Answer
from ray_apps.evaluate.results import Conduct, JudgeResults, Results

ALL = "all"
NOTHING = "–"
DISCONNECTED = "Compared with each other, and so to be held against each other, were only"


@dataclass(frozen=True)
class Table:
    """`num_texts`: columns from the left that hold words; the others hold numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    num_texts: int = 1


def percent(value: float, digits: int = 1) -> str:
    """A share as people read it."""
    return f"{100 * value:.{digits}f} %"


def percent_of(estimate: Estimate | None, digits: int = 1) -> str:
    """A share with its bounds."""
    if estimate is None:
        return NOTHING
    low, high = (f"{100 * bound:.{digits}f}" for bound in (estimate.low, estimate.high))
    return f"{percent(estimate.value, digits)} ({low} to {high})"


def number_of(estimate: Estimate | None, digits: int = 2) -> str:
    """A number with its bounds."""
    if estimate is None:
        return NOTHING
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def probability(p: float) -> str:
    """`= 0.03`, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.01 else f"= {p:.2f}"


def judge_tables(judge: JudgeResults) -> dict[str, Table]:
    """By what they are of: pairs, scores, relative, win_rates, ratings; without those that would be empty."""
    made = {
        "pairs": _pairs(judge.pairs),
        "scores": _scores(judge),
        "relative": _relative(judge),
        "win_rates": _win_rates(judge),
        "ratings": _ratings(judge),
    }
    return {name: table for name, table in made.items() if table.rows}


def _pairs(pairs: Sequence[PairFigures]) -> Table:
    columns = ("model", "against", "category", "won", "tied", "lost", "left out")
    rates = ("win rate", "adjusted win rate", "better or equal", "sign test p")
    rows = tuple(
        (
            *(one.a, one.b, one.category or ALL),
            *(str(count) for count in (one.wins, one.ties, one.losses, one.num_left_out)),
            *(percent_of(rate) for rate in (one.win_rate, one.adjusted, one.better_or_equal)),
            probability(one.sign_p).removeprefix("= "),
        )
        for one in pairs
    )
    note = (
        "Won is what both orders say; where they disagree, it is a tie. The adjusted rate counts a tie as half a win."
    )
    return Table("Pairs", (*columns, *rates), rows, note, 3)


def _scores(judge: JudgeResults) -> Table:
    models = list(dict.fromkeys(one.model for one in judge.scores))
    found = {(one.category, one.model): one for one in judge.scores}
    names = sorted({one.category for one in judge.scores if one.category is not None})
    rows = []
    for category in (None, *names) if judge.scores else ():
        own = [found.get((category, model)) for model in models]
        counts = sorted({one.num_questions for one in own if one is not None})
        told = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        means = (NOTHING if one is None else number_of(one.mean) for one in own)
        rows.append((category or ALL, told, *means))
    return Table("Scores from 1 to 10", ("category", "questions", *models), tuple(rows))


def _relative(judge: JudgeResults) -> Table:
    rows = tuple(
        (
            *(one.model, one.baseline, percent_of(one.ratio), f"{one.total:g}", f"{one.baseline_total:g}"),
            *(str(one.num_questions), str(one.num_left_out)),
        )
        for one in judge.relative
    )
    columns = ("model", "baseline", "of its points", "points", "baseline's points", "questions", "left out")
    return Table("Points relative to the baseline", columns, rows, num_texts=2)


def ranked(judge: JudgeResults) -> list[str]:
    """Models that were compared, the best first."""
    return [rating.model for rating in judge.ratings]


def _win_rates(judge: JudgeResults) -> Table:
    models = ranked(judge)
    rows = []
    for model in models:
        cells = [judge.win_rates.get((model, other)) for other in models]
        rows.append((model, *(NOTHING if cell is None else f"{percent(cell[0])} of {cell[1]}" for cell in cells)))
    note = "How often the model of the row beats that of the column; a tie is half a win."
    return Table("Pairwise win rates", ("model", *models), tuple(rows), note)


def _ratings(judge: JudgeResults) -> Table:
    rows = tuple(
        (one.model, f"{one.rating:.0f}", f"{one.low:.0f} to {one.high:.0f}", str(one.num_battles))
        for one in judge.ratings
    )
    groups = components(battles(judge.comparisons))
    apart = f"{DISCONNECTED}: {'; '.join(', '.join(group) for group in groups)}." if len(groups) > 1 else ""
    note = f"Bradley-Terry on Elo's scale, with a mean of 1000. {apart}".strip()
    return Table("Ratings", ("model", "rating", "95 %", "comparisons"), rows, note)


def conduct_table(results: Results) -> Table:
    """How the judges did their work, a column for each."""
    columns = [_conduct(judge, judge.conduct) for judge in results.judges]
    names = [name for name in columns[0] if any(column[name] != NOTHING for column in columns)] if columns else []
    rows = tuple((name, *(column[name] for column in columns)) for name in names)
    note = (
        "Length is no bias by itself, for a longer answer may well be better. "
        "A place is followed where the two orders disagree and the answer that stands there gains."
    )
    title = "The judge's conduct" if len(results.judges) == 1 else "The judges' conduct"
    return Table(title, ("", *(judge.judge for judge in results.judges)), rows, note)


def _conduct(judge: JudgeResults, conduct: Conduct) -> dict[str, str]:
    position, length = conduct.position, conduct.length
    again = f"{percent(conduct.self_agreement)} of {conduct.num_repeated}" if conduct.self_agreement is not None else ""
    both = f", of {position.num_comparisons}" if position else ""
    decided = f", of {length.num_decided}" if length and length.longer_wins else ""
    return {
        "verdicts": f"{conduct.num_verdicts:,}",
        "asked again until in form": f"{conduct.num_again:,}",
        "never in form": f"{conduct.num_out_of_form:,}",
        "failed calls": f"{conduct.num_failed:,}",
        "same verdict in both orders": f"{percent_of(position.consistent)}{both}" if position else NOTHING,
        "follows the first place": percent_of(position.first if position else None),
        "follows the second place": percent_of(position.second if position else None),
        "longer answer wins": f"{percent_of(length.longer_wins if length else None)}{decided}",
        "length and outcome, Kendall's tau": _maybe(length.kendall_tau if length else None),
        "agrees with itself when asked again": again or NOTHING,
        "tokens read": f"{conduct.prompt_tokens:,}",
        "tokens written": f"{conduct.completion_tokens:,}",
        "cost": _dollars(conduct.cost),
        "verdicts of older prompts, left out": str(judge.num_of_older_prompts or NOTHING),
        "prompts": ", ".join(judge.prompts),
    }


def _dollars(cost: float | None) -> str:
    return NOTHING if cost is None else f"${cost:,.{2 if cost >= 1 or not cost else 4}f}"


def _maybe(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def agreement_table(results: Results) -> Table:
    """How far judges, and people, agree."""
    rows = tuple(
        (
            *(one, other, percent_of(found.equal)),
            f"{percent_of(found.equal_decided)} of {found.num_decided}" if found.equal_decided else NOTHING,
            *(number_of(found.kappa), str(found.num_items), str(found.num_left_out)),
        )
        for one, other, found in results.agreements
    )
    columns = ("judge", "other", "equal", "equal where neither says tie", "Cohen's kappa", "items", "left out")
    note = "An item is a question and two models. Left out is what only one of the two has judged."
    return Table("Agreement", columns, rows, note, 2)


def answers_table(answers: Sequence[Answer]) -> Table:
    """How much each model has answered."""
    last = {(one.model, one.question_id, one.choice, one.turn): one for one in answers}
    rows = []
    for model in sorted({one.model for one in answers}):
        own = [one for one in last.values() if one.model == model]
        num_cut = sum(one.finish_reason == "length" for one in own)
        length = sum(len(one.text) for one in own) / len(own)
        rows.append((model, str(len(own)), str(num_cut), f"{length:,.0f}"))
    columns = ("model", "answers", "cut at the longest allowed", "characters on average")
    return Table("Answers", columns, tuple(rows))


TaskKey = tuple[str, str, int]


def task_scores(benchmark: Benchmarks) -> dict[TaskKey, TaskScore]:
    """By task, metric, and which of those of that name."""
    seen: Counter[tuple[str, str]] = Counter()
    found = {}
    for score in benchmark.scores:
        found[score.task, score.metric, seen[score.task, score.metric]] = score
        seen[score.task, score.metric] += 1
    return found


def difference(score: TaskScore, other: TaskScore) -> tuple[float, float | None]:
    """By how much the first is more, and the standard error of that, the two being independent."""
    if score.stderr is None or other.stderr is None:
        return score.value - other.value, None
    return score.value - other.value, math.hypot(score.stderr, other.stderr)


def benchmark_table(benchmarks: Sequence[Benchmarks], baseline: str | None) -> Table:
    """What models reached in standard tasks, and by how much that is more than the baseline."""
    found = {one.model: task_scores(one) for one in benchmarks}
    others = [model for model in found if model != baseline] if baseline in found else []
    rows = []
    for key in dict.fromkeys(key for scores in found.values() for key in scores):
        own = {model: scores.get(key) for model, scores in found.items()}
        counts = sorted({score.num_samples for score in own.values() if score is not None})
        values = [NOTHING if score is None else _spread(score.value, score.stderr) for score in own.values()]
        base = own.get(baseline) if baseline is not None else None
        ahead = [_ahead(own[model], base) for model in others]
        rows.append((key[0], key[1], " / ".join(map(str, counts)), *values, *ahead))
    columns = ("task", "metric", "samples", *found, *(f"{model} − {baseline}" for model in others))
    note = "± is the standard error."
    return Table("Standard benchmarks", columns, tuple(rows), note, 2)


def _spread(value: float, stderr: float | None, sign: str = "") -> str:
    return f"{value:{sign}.4f}" if stderr is None else f"{value:{sign}.4f} ± {stderr:.4f}"


def _ahead(score: TaskScore | None, base: TaskScore | None) -> str:
    return NOTHING if score is None or base is None else _spread(*difference(score, base), sign="+")
