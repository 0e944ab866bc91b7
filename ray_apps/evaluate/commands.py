"""`vicuna eval …`. Like the rest of the command line, each command imports what it needs when it runs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from data_prep.errors import ConfigError, EvalError

if TYPE_CHECKING:
    from ray_apps.evaluate.client import Patience, Target
    from ray_apps.evaluate.records import Evaluation

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
    from ray_apps.evaluate.contest import demand, shown
    from ray_apps.evaluate.questions import load_questions
    from ray_apps.evaluate.records import Evaluation

    targets = dict(_target(one, url, key_variable) for one in models)
    asked = load_questions(questions, references=references, per_category=per_category)
    asking = Asking(
        choices, max_tokens, system, temperature, _by_category(temperatures), concurrency, _patience(timeout, tries)
    )
    total = len(asked) * choices * len(targets)
    evaluation = Evaluation(directory)
    demand(shown("answers", total, lambda on_done: ask_models(evaluation, asked, targets, asking, on_done)))


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
    from ray_apps.evaluate.contest import demand, shown
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
    demand(shown("judge", total, lambda on_done: judge_answers(evaluation, name or model, target, judging, on_done)))


@evaluate.command()
@DIRECTORY
@click.option("--baseline", help="Whom the others are held against.")
@click.option(
    "--labels", type=FILE, help="Verdicts of people, as MT-bench has them, to see how judges agree with them."
)
@click.option("--price-read", type=click.FloatRange(0), help="Dollars for a million tokens that the judge reads.")
@click.option("--price-written", type=click.FloatRange(0), help="Dollars for a million tokens that it writes.")
@SEED
def report(
    directory: Path,
    baseline: str | None,
    labels: Path | None,
    price_read: float | None,
    price_written: float | None,
    seed: int,
) -> None:
    """Write report.html, report.md and figures.csv of what was judged.

    Example: vicuna eval report artifacts/eval --baseline base
    """
    from ray_apps.evaluate.contest import write_all
    from ray_apps.evaluate.results import Prices

    has_price = price_read is not None or price_written is not None
    prices = Prices(price_read or 0.0, price_written or 0.0) if has_price else None
    for path in write_all(_existing(directory), baseline, prices=prices, labels=labels, seed=seed):
        click.echo(path)


@evaluate.command()
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@click.option("--votes", type=FILE, multiple=True, help="Votes of the chat page. Can be given several times.")
@click.option("--judge", help="The verdicts of this judge alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@SEED
def ratings(directory: Path | None, votes: tuple[Path, ...], judge: str | None, as_json: bool, seed: int) -> None:
    """Rate models by verdicts in DIRECTORY, by votes of the chat page, or by both.

    Example: vicuna eval ratings --votes /var/lib/vicuna/votes.jsonl
    """
    from ray_apps.evaluate.standings import print_json, print_table, standings

    if directory is None and not votes:
        raise ConfigError("ratings: give a DIRECTORY with verdicts, --votes FILE, or both")
    found = standings(None if directory is None else _existing(directory), votes, judge, seed)
    (print_json if as_json else print_table)(found)


@evaluate.command()
@DIRECTORY
@click.option("--model", required=True, help="A model directory; with --url the endpoint's name of it.")
@click.option("--name", help="What the report calls it, if that is to be something else.")
@click.option("--url", help="An OpenAI-compatible endpoint with /v1/completions that scores prompts, as ours does.")
@click.option("--tokenizer", help="With --url: a directory with its tokenizer, to send ids instead of texts.")
@click.option("--tasks", required=True, help="Of lm-eval, such as arc_easy,hellaswag.")
@click.option("--include", type=click.Path(path_type=Path, file_okay=False), help="A directory with tasks of your own.")
@click.option("--limit", type=click.IntRange(1), help="So many samples of each task.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
@KEY
def benchmarks(
    directory: Path,
    model: str,
    name: str | None,
    url: str | None,
    tokenizer: str | None,
    tasks: str,
    include: Path | None,
    limit: int | None,
    device: str,
    key_variable: str,
) -> None:
    """Do standard benchmarks through lm-eval (the extra `eval`); they stand in the report beside the judge's figures.

    Example: vicuna eval benchmarks artifacts/eval --model artifacts/demo/model --name tuned --tasks arc_easy
    """
    from ray_apps.evaluate.harness import run_benchmarks
    from ray_apps.evaluate.records import Evaluation

    made = run_benchmarks(
        Evaluation(directory),
        name or model,
        [task.strip() for task in tasks.split(",") if task.strip()],
        directory=None if url else model,
        url=url,
        served_name=model,
        tokenizer=tokenizer,
        include=include,
        limit=limit,
        device=device,
        key=os.environ.get(key_variable),
    )
    for score in made.scores:
        spread = "" if score.stderr is None else f" ± {score.stderr:.4f}"
        click.echo(f"{score.task:<24} {score.metric:<16} {score.value:.4f}{spread}")


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


def _existing(directory: Path) -> "Evaluation":
    from ray_apps.evaluate.records import Evaluation

    if not (directory / "questions.jsonl").exists():
        raise EvalError(f"{directory}: nothing was asked here yet; see `vicuna eval answers`")
    return Evaluation(directory)
