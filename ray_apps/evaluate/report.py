"""The report: one page that needs nothing but a browser, the same figures as Markdown, and as CSV in long form."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from data_prep.storage import write_text
from ray_apps.evaluate import charts
from ray_apps.evaluate.bootstrap import Estimate
from ray_apps.evaluate.figures import PairFigures, RelativeScore
from ray_apps.evaluate.harness import Benchmarks
from ray_apps.evaluate.records import Evaluation
from ray_apps.evaluate.results import Conduct, JudgeResults, Results

TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first column is words, the others are figures."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """What stands under one heading. `charts`: SVG."""

    title: str
    sentences: Sequence[str]
    charts: Sequence[Markup]
    tables: Sequence[Table]


def write_reports(
    evaluation: Evaluation, results: Results, benchmarks: Sequence[Benchmarks], *, note: str | None = None
) -> list[Path]:
    """Write report.html, report.md and figures.csv beside what they tell of; `note`: what must be said first."""
    sections = [*map(_judge_section, results.judges), *_further(results, benchmarks)]
    title = f"{len(results.models)} models, {results.num_questions} questions"
    page = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE.read_text())
    texts = {
        "report.html": page.render(title=title, note=note, sections=sections, data=_data(evaluation)),
        "report.md": _markdown(title, note, sections),
        "figures.csv": _csv(results, benchmarks),
    }
    for name, text in texts.items():
        write_text(evaluation.directory / name, text)
    return [evaluation.directory / name for name in texts]


def percent(one: Estimate | None) -> str:
    """A share with its bounds."""
    return "–" if one is None else f"{one.value:.1%} ({one.low:.0%} to {one.high:.0%})"


def number(one: Estimate | None, digits: int = 2) -> str:
    """A figure with its bounds."""
    return "–" if one is None else f"{one.value:.{digits}f} ({one.low:.{digits}f} to {one.high:.{digits}f})"


def _judge_section(judge: JudgeResults) -> Section:
    whole = [pair for pair in judge.pairs if pair.category is None]
    return Section(
        f"Judge: {judge.judge}",
        [*map(_pair_sentence, whole), *map(_relative_sentence, judge.relative)],
        [Markup(svg) for svg in _charts(judge, whole)],  # noqa: S704 - every text in them is escaped
        [table for table in _tables(judge) if table.rows],
    )


def _pair_sentence(pair: PairFigures) -> str:
    total = pair.wins + pair.ties + pair.losses
    left_out = f"; {pair.num_left_out} lack a verdict" if pair.num_left_out else ""
    return (
        f"{pair.a} against {pair.b}: better or equal in {percent(pair.better_or_equal)} of {total} comparisons, won "
        f"{percent(pair.win_rate)}, adjusted win rate {percent(pair.adjusted)}, sign test p = {pair.sign_p:.3g}"
        f"{left_out}."
    )


def _relative_sentence(one: RelativeScore) -> str:
    return (
        f"{one.model} scores {percent(one.ratio)} of {one.baseline}: {one.total:g} against {one.baseline_total:g} "
        f"points on {one.num_questions} questions."
    )


def _charts(judge: JudgeResults, whole: Sequence[PairFigures]) -> Iterator[str]:
    models = sorted({one.model for one in judge.scores})
    categories = sorted({one.category for one in judge.scores if one.category is not None})
    means = {(one.model, one.category): one.mean.value for one in judge.scores}
    if len(categories) > 2:
        shapes = {model: [means.get((model, name)) for name in categories] for model in models}
        yield charts.titled("Mean scores by category", charts.radar(categories, shapes), charts.legend(models))
    if overall := [(one.model, one.mean) for one in judge.scores if one.category is None]:
        yield charts.titled("Mean scores, 1 to 10", charts.intervals(overall, "Mean scores"))
    for pair in whole:
        rows = [one for one in judge.pairs if (one.a, one.b) == (pair.a, pair.b)]
        legend = charts.legend(("won", "tied", "lost"), (charts.WON, charts.TIED, charts.LOST))
        yield charts.titled(f"{pair.a} against {pair.b}", charts.outcomes(rows), legend)
    compared = sorted({model for pair in judge.win_rates for model in pair})
    if len(compared) > 2:
        yield charts.titled("Pairwise win rates, a tie as half", charts.heat_map(compared, judge.win_rates))
        yield charts.titled("Bradley–Terry ratings", charts.whiskers(judge.ratings))


def _tables(judge: JudgeResults) -> Iterator[Table]:
    head = ("pair", "category", "won", "tied", "lost", "no verdict", "win rate", "adjusted", "better or equal", "p")
    rows = [
        (
            *(f"{one.a} against {one.b}", one.category or "all", f"{one.wins}", f"{one.ties}", f"{one.losses}"),
            *(f"{one.num_left_out}", percent(one.win_rate), percent(one.adjusted), percent(one.better_or_equal)),
            f"{one.sign_p:.3g}",
        )
        for one in judge.pairs
    ]
    yield Table("Pairs", head, rows, "A win is one that both orders agree on; p: sign test over questions.")
    scored = [(one.model, one.category or "all", number(one.mean), f"{one.num_questions}") for one in judge.scores]
    yield Table("Scores, 1 to 10", ("model", "category", "mean", "questions"), scored)
    rated = [(one.model, f"{one.rating:.0f}", f"{one.low:.0f} to {one.high:.0f}") for one in judge.ratings]
    yield Table("Bradley–Terry ratings", ("model", "rating", "95 %"), rated)
    yield Table("The judge", ("", ""), _conduct_rows(judge, judge.conduct))


def _conduct_rows(judge: JudgeResults, conduct: Conduct) -> list[tuple[str, str]]:
    rows = [
        ("prompts", ", ".join(judge.prompts)),
        ("verdicts", f"{conduct.num_verdicts}"),
        ("asked for again until in form", f"{conduct.num_again}"),
        ("never in form", f"{conduct.num_out_of_form}"),
        ("calls that came to nothing", f"{conduct.num_failed}"),
        ("tokens read, written", f"{conduct.prompt_tokens:,}, {conduct.completion_tokens:,}"),
    ]
    if judge.num_of_older_prompts:
        rows.append(("verdicts by older prompts, left out", f"{judge.num_of_older_prompts}"))
    if conduct.cost is not None:
        rows.append(("cost", f"${conduct.cost:.2f}"))
    if conduct.self_agreement is not None:
        rows.append(("agrees with itself", f"{conduct.self_agreement:.1%} of {conduct.num_repeated}"))
    if bias := conduct.position:
        rows += [
            ("both orders agree", percent(bias.consistent)),
            ("the first gains from its place", percent(bias.first)),
            ("the second gains from its place", percent(bias.second)),
        ]
    if conduct.length and conduct.length.longer_wins:
        rows.append(("won by the longer answer, of those won", percent(conduct.length.longer_wins)))
    if conduct.length and conduct.length.kendall_tau is not None:
        rows.append(("length and outcome, Kendall's tau", f"{conduct.length.kendall_tau:.2f}"))
    return rows


def _further(results: Results, benchmarks: Sequence[Benchmarks]) -> Iterator[Section]:
    if results.agreements:
        head = ("judges", "same questions", "equal", "equal where neither ties", "Cohen's kappa")
        rows = [
            (
                f"{one} and {other}",
                f"{held.num_items}",
                percent(held.equal),
                percent(held.equal_decided),
                number(held.kappa),
            )
            for one, other, held in results.agreements
        ]
        yield Section("Agreement", (), (), [Table("Judges and people", head, rows)])
    if benchmarks:
        yield Section("Standard benchmarks", (), (), [_benchmark_table(benchmarks, results.baseline)])


def _benchmark_table(benchmarks: Sequence[Benchmarks], baseline: str | None) -> Table:
    names = [one.model for one in benchmarks]
    found = {(score.task, score.metric, one.model): score for one in benchmarks for score in one.scores}
    base = next((one.model for one in benchmarks if one.model == baseline), None)
    others = [name for name in names if base is not None and name != base]
    rows = []
    for task, metric in sorted({(task, metric) for task, metric, _ in found}):
        scores = {name: found.get((task, metric, name)) for name in names}
        cells = [
            "–" if one is None else f"{one.value:.4f}" + ("" if one.stderr is None else f" ± {one.stderr:.4f}")
            for one in scores.values()
        ]
        held = scores[base] if base else None
        gains = [f"{one.value - held.value:+.4f}" if held and (one := scores[name]) else "–" for name in others]
        rows.append((f"{task}, {metric}", *cells, *gains))
    return Table("lm-eval", ("task", *names, *(f"{name} − {base}" for name in others)), rows)


def _data(evaluation: Evaluation) -> Markup:
    """Questions, answers and verdicts as JSON that may stand in a page: no `<` in it."""
    answers: dict[str, list[dict[str, Any]]] = {}
    cut = {(one.model, one.question_id, one.choice) for one in evaluation.answers() if one.finish_reason == "length"}
    for key, turns in evaluation.conversations().items():
        model, question_id, choice = key
        told = {"model": model, "choice": choice, "turns": turns, "cut": key in cut}
        answers.setdefault(question_id, []).append(told)
    verdicts: dict[str, list[dict[str, Any]]] = {}
    for one in evaluation.verdicts():
        fields = {"judge", "kind", "models", "choice", "first", "outcome", "score", "repeat", "text"}
        verdicts.setdefault(one.question_id, []).append(one.model_dump(include=fields))
    items = [
        {
            **question.model_dump(),
            "answers": answers.get(question.question_id, []),
            "verdicts": verdicts.get(question.question_id, []),
        }
        for question in evaluation.questions()
    ]
    return Markup(json.dumps(items, ensure_ascii=False).replace("<", "\\u003c"))  # noqa: S704


def _markdown(title: str, note: str | None, sections: Sequence[Section]) -> str:
    parts = [f"# {_cell(title)}", *([f"> {note}"] if note else [])]
    for section in sections:
        parts.append(f"## {_cell(section.title)}")
        if section.sentences:
            parts.append("\n".join(f"- {_cell(sentence)}" for sentence in section.sentences))
        for table in section.tables:
            rule = "|".join(["---"] * len(table.head))
            rows = [f"| {' | '.join(map(_cell, row))} |" for row in (table.head, *table.rows)]
            parts.append(f"### {table.title}\n\n{rows[0]}\n|{rule}|\n" + "\n".join(rows[1:]))
            parts += [table.note] if table.note else []
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


CSV_HEAD = ("judge", "kind", "model", "against", "category", "figure", "value", "low", "high", "n")


def _csv(results: Results, benchmarks: Sequence[Benchmarks]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for judge in results.judges:
        writer.writerows(_pair_lines(judge))
        for one in judge.scores:
            bounds = (one.mean.value, one.mean.low, one.mean.high, one.num_questions)
            writer.writerow((judge.judge, "single", one.model, "", one.category or "all", "mean_score", *bounds))
        for relative in judge.relative:
            bounds = (relative.ratio.value, relative.ratio.low, relative.ratio.high, relative.num_questions)
            begin = (judge.judge, "single", relative.model, relative.baseline, "all", "relative_score")
            writer.writerow((*begin, *bounds))
        for rating in judge.ratings:
            bounds = (rating.rating, rating.low, rating.high, rating.num_battles)
            writer.writerow((judge.judge, "pair", rating.model, "", "all", "bradley_terry", *bounds))
    for made in benchmarks:
        for score in made.scores:
            line = ("lm-eval", score.task, made.model, "", "all", score.metric, score.value, "", "", score.num_samples)
            writer.writerow(line)
    return text.getvalue()


def _pair_lines(judge: JudgeResults) -> Iterator[tuple[object, ...]]:
    for pair in judge.pairs:
        total = pair.wins + pair.ties + pair.losses
        begin = (judge.judge, "pair", pair.a, pair.b, pair.category or "all")
        for name, count in (("wins", pair.wins), ("ties", pair.ties), ("losses", pair.losses)):
            yield (*begin, name, count, "", "", total)
        for name in ("win_rate", "adjusted", "better_or_equal"):
            found: Estimate | None = getattr(pair, name)
            if found is not None:
                yield (*begin, name, found.value, found.low, found.high, total)
