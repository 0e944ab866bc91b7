"""`vicuna eval …`. Like the rest of the command line, each command imports what it needs when it runs."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from data_prep.errors import ConfigError, EvalError

if TYPE_CHECKING:
    from ray_apps.evaluate.answers import Summary
    from ray_apps.evaluate.client import Patience, Target

DIRECTORY = click.argument("directory", type=click.Path(path_type=Path))
FILE = click.Path(path_type=Path, dir_okay=False)
KEY = click.option(
    "--key-variable", default="OPENAI_API_KEY", show_default=True, help="The environment variable with the key."
)
CONCURRENCY = click.option(
    "--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Calls at a time."
)
TIMEOUT = click.option("--timeout", type=click.FloatRange(0, min_open=True), default=600, help="Seconds for one call.")
TRIES = click.option("--tries", type=click.IntRange(1), default=5, show_default=True, help="Of a call that fails.")
SEED = click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")


@click.group(name="eval")
def evaluate() -> None:
    """Have models answer questions, and a model judge them.

    DIRECTORY keeps questions, answers, verdicts and the report. Every command goes on where it was interrupted; what is
    answered or judged is not asked again.
    """


@evaluate.command()
@DIRECTORY
@click.option("--url", help="An OpenAI-compatible endpoint, for every --model that names none.")
@click.option(
    "--model", "models", multiple=True, required=True, metavar="NAME[@URL]", help="Can be given several times."
)
@click.option("--questions", default="english", show_default=True, help="english, chinese, or a file of JSON lines.")
@click.option("--references", type=FILE, help="MT-bench's file of reference answers.")
@click.option("--per-category", type=click.IntRange(1), help="So many questions of each category.")
@click.option("--choices", type=click.IntRange(1), default=1, show_default=True, help="Answers to each question.")
@click.option("--max-tokens", type=click.IntRange(1), default=1024, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 2), help="Of all; each category has its own otherwise.")
@click.option("--category-temperature", "temperatures", multiple=True, metavar="CATEGORY=T", help="Of one category.")
@click.option("--system", help="A system prompt.")
@KEY
@CONCURRENCY
@TIMEOUT
@TRIES
def answers(
    directory: Path,
    url: str | None,
    models: tuple[str, ...],
    questions: str,
    references: Path | None,
    per_category: int | None,
    choices: int,
    max_tokens: int,
    temperature: float | None,
    temperatures: tuple[str, ...],
    system: str | None,
    key_variable: str,
    concurrency: int,
    timeout: float,
    tries: int,
) -> None:
    """Ask models the questions.

    Example: vicuna eval answers artifacts/eval --url http://127.0.0.1:8000 --model base --model tuned
    """
    from ray_apps.evaluate.answers import Asking, ask_models
    from ray_apps.evaluate.questions import load_questions
    from ray_apps.evaluate.records import Evaluation

    targets = dict(_target(one, url, key_variable) for one in models)
    asked = load_questions(questions, references=references, per_category=per_category)
    asking = Asking(
        choices, max_tokens, system, temperature, _by_category(temperatures), concurrency, _patience(timeout, tries)
    )
    total = len(asked) * choices * len(targets)
    evaluation = Evaluation(directory)
    shown("answers", total, lambda on_done: ask_models(evaluation, asked, targets, asking, on_done))


@evaluate.command()
@DIRECTORY
@click.option("--url", required=True, help="An OpenAI-compatible endpoint.")
@click.option("--model", required=True, help="What the endpoint calls the judge.")
@click.option("--name", help="What verdicts call it, if that is to be something else.")
@click.option("--kind", "kinds", type=click.Choice(["pair", "single"]), multiple=True, default=["pair", "single"])
@click.option("--baseline", help="Compare with this model alone; otherwise everybody with everybody.")
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Ask the same so often.")
@click.option("--max-tokens", type=click.IntRange(16), default=1024, show_default=True)
@click.option("--form", type=click.Choice(["auto", "json", "text"]), default="auto", help="Of a verdict; see the docs.")
@click.option("--form-tries", type=click.IntRange(1), default=3, show_default=True, help="Until a verdict is in form.")
@click.option("--prompts", type=click.Path(path_type=Path, file_okay=False), help="A directory of your own prompts.")
@KEY
@CONCURRENCY
@TIMEOUT
@TRIES
def judge(
    directory: Path,
    url: str,
    model: str,
    name: str | None,
    kinds: tuple[Literal["pair", "single"], ...],
    baseline: str | None,
    repeats: int,
    max_tokens: int,
    form: Literal["auto", "json", "text"],
    form_tries: int,
    prompts: Path | None,
    key_variable: str,
    concurrency: int,
    timeout: float,
    tries: int,
) -> None:
    """Have a model judge the answers: in pairs, in both orders, and each from 1 to 10.

    Example: vicuna eval judge artifacts/eval --url https://api.openai.com --model gpt-4o --baseline base
    """
    from ray_apps.evaluate.client import Target
    from ray_apps.evaluate.judge import Judging, judge_answers, planned

    judging = Judging(
        kinds=kinds,
        baseline=baseline,
        num_repeats=repeats,
        max_tokens=max_tokens,
        form=form,
        tries=form_tries,
        prompts=prompts,
        concurrency=concurrency,
        patience=_patience(timeout, tries),
    )
    evaluation = _existing(directory)
    total = len(list(planned(evaluation, judging)))
    target = Target(url, model, os.environ.get(key_variable))
    shown("judge", total, lambda on_done: judge_answers(evaluation, name or model, target, judging, on_done))


def shown(name: str, total: int, step: "Callable[[Callable[[], None]], Any]") -> "Summary":
    """Do a step behind a progress bar.

    Raises:
        EvalError: not all of it was done; naming what came to nothing.
    """
    from ray_apps.console import stage

    with stage(name) as bar:
        done = 0

        def on_done() -> None:
            nonlocal done
            done += 1
            bar.update(done, total, f"{done}/{total}")

        bar.update(0, total)
        summary: Summary = asyncio.run(step(on_done))
        kept = f", {summary.num_kept} were there" if summary.num_kept else ""
        cut = f", {summary.num_cut} cut at --max-tokens" if summary.num_cut else ""
        bar.finish(f"{summary.num_done} new{kept}{cut}, {len(summary.failed)} failed")
    if summary.failed:
        lines = [*summary.failed[:5], *([f"… and {len(summary.failed) - 5} more"] if len(summary.failed) > 5 else [])]
        raise EvalError("\n".join([*lines, "the rest is kept; the same command tries these again"]))
    return summary


def _target(text: str, url: str | None, key_variable: str) -> "tuple[str, Target]":
    from ray_apps.evaluate.client import Target

    name, at, own = text.rpartition("@http")
    if not at:
        name, own = text, ""
    address = f"http{own}" if at else url
    if address is None:
        raise ConfigError(f"--url: is required, for --model {text!r} names no endpoint (NAME@URL)")
    return name, Target(address, name, os.environ.get(key_variable))


def _by_category(texts: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for text in texts:
        category, _, value = text.partition("=")
        try:
            found[category] = float(value)
        except ValueError:
            raise ConfigError(f"--category-temperature: {text!r} is not valid; expected CATEGORY=T") from None
    return found


def _patience(timeout: float, tries: int) -> "Patience":
    from ray_apps.evaluate.client import Patience

    return Patience(tries=tries, timeout_s=timeout)


def _existing(directory: Path) -> Any:
    from ray_apps.evaluate.records import Evaluation

    if not (directory / "questions.jsonl").exists():
        raise EvalError(f"{directory}: nothing was asked here yet; see `vicuna eval answers`")
    return Evaluation(directory)
