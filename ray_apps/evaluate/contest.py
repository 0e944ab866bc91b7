"""All of it in one go: two models behind one endpoint answer, a judge compares them, and the report is written."""

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import ConfigError, EvalError
from ray_apps.console import stage
from ray_apps.evaluate.answers import Asking, Summary, ask_models
from ray_apps.evaluate.bootstrap import Bootstrap
from ray_apps.evaluate.client import Target
from ray_apps.evaluate.config import EvalConfig
from ray_apps.evaluate.harness import read_benchmarks
from ray_apps.evaluate.judge import Judging, judge_answers, planned
from ray_apps.evaluate.questions import load_questions
from ray_apps.evaluate.records import Evaluation
from ray_apps.evaluate.report import write_reports
from ray_apps.evaluate.results import Prices, results_of

BASE, TUNED = "base", "tuned"
STAND_IN = "tuned, standing in as the judge"
SMOKE_TEST = "Smoke test: the judge is the tuned model itself. It shows that everything works, not how good a model is."
OnDone = Callable[[], None]


def hold(evaluation: Evaluation, config: EvalConfig, url: str) -> list[Path]:
    """Have `base` and `tuned`, which are served at `url`, answer and be judged; the report's files.

    Raises:
        EvalError: not all of it was done. What was is in the report.
    """
    questions = load_questions(config.questions, per_category=config.per_category)
    targets = {name: Target(url, name) for name in (BASE, TUNED)}
    asking = Asking(
        num_choices=config.choices,
        max_tokens=config.max_tokens,
        system=config.system,
        temperature=config.temperature,
        concurrency=config.concurrency,
    )
    total = len(questions) * config.choices * len(targets)
    answered = shown("answers", total, lambda on_done: ask_models(evaluation, questions, targets, asking, on_done))
    judging = Judging(
        kinds=tuple(config.judge.kinds),
        baseline=BASE,
        num_repeats=config.judge.repeats,
        max_tokens=config.judge.max_tokens,
        form=config.judge.form,
        concurrency=config.judge.concurrency,
    )
    name, judge = _judge(config, url)
    total = len(list(planned(evaluation, judging)))
    judged = shown("judge", total, lambda on_done: judge_answers(evaluation, name, judge, judging, on_done))
    note = None if config.judge.url else SMOKE_TEST
    if not evaluation.verdicts():
        demand(answered, judged)
    paths = write_all(evaluation, BASE, note=note, seed=config.seed)
    demand(answered, judged)
    return paths


def _judge(config: EvalConfig, url: str) -> tuple[str, Target]:
    judge = config.judge
    if judge.url is None:
        return STAND_IN, Target(url, TUNED)
    assert judge.model is not None
    return judge.model, Target(judge.url, judge.model, os.environ.get(judge.key_variable))


def write_all(
    evaluation: Evaluation,
    baseline: str | None,
    *,
    prices: Prices | None = None,
    labels: Path | None = None,
    note: str | None = None,
    seed: int = 0,
) -> list[Path]:
    """Write the report of what was judged; its files. Raises as `results_of`."""
    results = results_of(evaluation, baseline=baseline, prices=prices, labels=labels, bootstrap=Bootstrap(seed=seed))
    is_smoke_test = any(one.judge == STAND_IN for one in results.judges)
    return write_reports(
        evaluation, results, read_benchmarks(evaluation), note=note or (SMOKE_TEST if is_smoke_test else None)
    )


def shown(name: str, total: int, step: Callable[[OnDone], Coroutine[Any, Any, Summary]]) -> Summary:
    """Do a step behind a progress bar, and say what came of it."""
    with stage(name) as bar:
        done = 0

        def on_done() -> None:
            nonlocal done
            done += 1
            bar.update(done, total, f"{done}/{total}")

        bar.update(0, total)
        summary = asyncio.run(step(on_done))
        kept = f", {summary.num_kept} were there" if summary.num_kept else ""
        cut = f", {summary.num_cut} cut at their longest" if summary.num_cut else ""
        bar.finish(f"{summary.num_done} new{kept}{cut}, {len(summary.failed)} failed")
    return summary


def demand(*summaries: Summary) -> None:
    """Return if everything was done.

    Raises:
        EvalError: naming what came to nothing.
    """
    failed = [reason for summary in summaries for reason in summary.failed]
    if failed:
        more = [f"… and {len(failed) - 5} more"] if len(failed) > 5 else []
        raise EvalError("\n".join([*failed[:5], *more, "the rest is kept; the same command tries these again"]))


def prepare_base(base: Path, tuned: Path, place: Path) -> Path:
    """`base`, or, where it has no chat template, its files beside that of `tuned` in a directory under `place`."""
    if _has_template(base):
        return base
    directory = place / BASE
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for file in base.iterdir():
        (directory / file.name).symlink_to(file.resolve())
    template = tuned / "chat_template.jinja"
    if not template.is_file():
        raise ConfigError(
            f"eval: neither {base} nor {tuned} has a chat_template.jinja, so that the base cannot be asked"
        )
    (directory / template.name).symlink_to(template.resolve())
    return directory


def _has_template(directory: Path) -> bool:
    config = directory / "tokenizer_config.json"
    return (directory / "chat_template.jinja").exists() or (config.exists() and '"chat_template"' in config.read_text())


def remove(directory: Path) -> None:
    """Remove what an earlier evaluation has written in `directory`, and nothing else.

    Raises:
        ConfigError: something else is there.
    """
    if not directory.exists():
        return
    ours: Sequence[str] = ("answers", "verdicts", "prompts", "benchmarks", BASE)
    files = (
        "questions.jsonl",
        "failures.jsonl",
        "report.html",
        "report.md",
        "figures.csv",
        ".answers.lock",
        ".judge.lock",
    )
    others = sorted({path.name for path in directory.iterdir()} - {*ours, *files})
    if others:
        raise ConfigError(
            f"eval.output: {directory} holds {others[0]!r}, which is none of an evaluation; nothing was removed"
        )
    shutil.rmtree(directory)
