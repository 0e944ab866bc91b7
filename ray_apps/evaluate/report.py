"""`report.html`, `report.md` and `figures.csv`: what an evaluation comes to, for a browser, a text and a program.

The page needs nothing else: no network, no other file. What models and judges wrote is shown in it, never run.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from data_prep.storage import write_text
from ray_apps.evaluate import charts
from ray_apps.evaluate.exhibits import exhibits
from ray_apps.evaluate.figures import PairFigures
from ray_apps.evaluate.harness import Benchmarks
from ray_apps.evaluate.headlines import Headline, headlines
from ray_apps.evaluate.long_form import figures_csv
from ray_apps.evaluate.records import Evaluation
from ray_apps.evaluate.results import JudgeResults, Results
from ray_apps.evaluate.tables import (
    Table,
    agreement_table,
    answers_table,
    benchmark_table,
    conduct_table,
    judge_tables,
    ranked,
)

TEMPLATE = Path(__file__).parent / "report.html"
BOUNDS = (
    "In brackets stand the bounds of the 95 % interval, from a bootstrap over questions (for ratings over comparisons)."
)


def write_reports(
    evaluation: Evaluation, results: Results, benchmarks: Sequence[Benchmarks], *, note: str | None = None
) -> list[Path]:
    """Write the three files in the evaluation's directory; where they are. `note`: stands above all else in them.

    What there is nothing to tell of is left out.
    """
    directory = evaluation.directory
    texts = {
        "report.html": _page(evaluation, results, benchmarks, note),
        "report.md": _markdown(evaluation, results, benchmarks, note),
        "figures.csv": figures_csv(results, benchmarks),
    }
    for name, text in texts.items():
        write_text(directory / name, text)
    return [directory / name for name in texts]


def _title(evaluation: Evaluation) -> str:
    return f"Evaluation {evaluation.directory.resolve().name}"


def _facts(evaluation: Evaluation, results: Results) -> list[tuple[str, str]]:
    last = max((verdict.time for verdict in evaluation.verdicts()), default=None)
    facts = {
        "questions": str(results.num_questions),
        "models": ", ".join(results.models),
        "baseline": results.baseline,
        "judge" if len(results.judges) == 1 else "judges": ", ".join(judge.judge for judge in results.judges),
        "last verdict": f"{last:%Y-%m-%d %H:%M} UTC" if last else None,
    }
    return [(name, value) for name, value in facts.items() if value]


def _overall(evaluation: Evaluation, results: Results, benchmarks: Sequence[Benchmarks]) -> dict[str, Table]:
    """Tables that are of no one judge, by where they stand; without those that would be empty."""
    made = {
        "agreement": agreement_table(results),
        "conduct": conduct_table(results),
        "benchmarks": benchmark_table(benchmarks, results.baseline),
        "answers": answers_table(evaluation.answers()),
    }
    return {name: table for name, table in made.items() if table.rows}


def _page(evaluation: Evaluation, results: Results, benchmarks: Sequence[Benchmarks], note: str | None) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    environment.filters["digest"] = _digest
    page = environment.from_string(TEMPLATE.read_text("utf-8")).render(
        title=_title(evaluation),
        facts=_facts(evaluation, results),
        note=note,
        headlines=headlines(results),
        bounds=BOUNDS,
        models=[(charts.mark(number), model) for number, model in enumerate(results.models)],
        judges=[_section(judge, results) for judge in results.judges],
        overall=_overall(evaluation, results, benchmarks),
        data=exhibits(evaluation, results),
    )
    return _printable(page)


def _digest(script: str) -> str:
    """By which the page's policy knows its own script from any other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _section(judge: JudgeResults, results: Results) -> dict[str, Any]:
    """A judge's charts and tables."""
    models = results.models
    by_pair: dict[tuple[str, str], list[PairFigures]] = {}
    for one in judge.pairs:
        by_pair.setdefault((one.a, one.b), []).append(one)
    in_order = sorted(by_pair.items(), key=lambda pair: (results.baseline not in pair[0], pair[0]))
    drawn = {
        "Scores by category": charts.radar(judge.scores, models),
        "Scores with their intervals": charts.score_dots(judge.scores, models),
        **{f"{a} against {b}": charts.outcomes(found) for (a, b), found in in_order},
        "Who beats whom, %": charts.heat_map(judge.win_rates, ranked(judge)),
        "Ratings": charts.whiskers(judge.ratings, models),
    }
    shown = [(title, chart) for title, chart in drawn.items() if chart is not None]
    has_outcomes = any(one.adjusted is not None for one in judge.pairs)
    return {"name": judge.judge, "charts": shown, "tables": judge_tables(judge), "has_outcomes": has_outcomes}


def _printable(text: str) -> str:
    """Without characters that a page may not hold."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]", "\ufffd", text)


def _markdown(evaluation: Evaluation, results: Results, benchmarks: Sequence[Benchmarks], note: str | None) -> str:
    lines = [f"# {escaped(_title(evaluation))}", ""]
    lines += [f"> **{escaped(note)}**", ""] if note else []
    lines += [f"- {name}: {escaped(value)}" for name, value in _facts(evaluation, results)]
    lines += ["", *_sentences(headlines(results)), "", BOUNDS, ""]
    for judge in results.judges:
        lines += [f"## Judge {escaped(judge.judge)}", ""]
        for table in judge_tables(judge).values():
            lines += _table(table, "###")
    for table in _overall(evaluation, results, benchmarks).values():
        lines += _table(table, "##")
    return "\n".join(lines).rstrip() + "\n"


def _sentences(found: Sequence[Headline]) -> list[str]:
    has_many = len({one.judge for one in found}) > 1
    return [f"- {f'{escaped(one.judge)}: ' if has_many else ''}{escaped(one.sentence)}" for one in found]


def _table(table: Table, heading: str) -> Iterator[str]:
    yield from (f"{heading} {escaped(table.title)}", "", _row(table.columns))
    yield _row(["---"] * table.num_texts + ["---:"] * (len(table.columns) - table.num_texts), is_plain=True)
    yield from map(_row, table.rows)
    yield from ("", escaped(table.note), "") if table.note else ("",)


def _row(cells: Sequence[str], is_plain: bool = False) -> str:
    return f"| {' | '.join(cells if is_plain else map(escaped, cells))} |"


def escaped(text: str) -> str:
    """A text that Markdown shows as it is, on one line."""
    line = re.sub(r"\s+", " ", _printable(text))
    return re.sub(r"([\\`*\[\]<>|&~$])|(?<!\w)(_)|(_)(?!\w)", lambda found: f"\\{found[0]}", line)
