"""The command line. Every subcommand imports what it needs when it runs, so that help is instant.

What takes seconds to import comes after the settings are read, so that a mistake in them is told at once.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

import click

from data_prep.errors import VicunaError
from ray_apps.chat.command_line import chat
from ray_apps.evaluate.commands import evaluate
from ray_apps.options import FRESH, OVERRIDES
from ray_apps.spot.commands import spot
from ray_apps.weights.commands import weights

# Libraries must not print over the stages, here and in the processes started from here.
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONWARNINGS": "ignore",
    "RAY_AUTH_MODE": "token",  # Ray's own choice for a cluster it starts, but then it warns of it
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "true",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vicuna-ray")
def vicuna() -> None:
    """From a pile of shared chats to a chat endpoint.

    RECIPE is a YAML file, or the name of one that comes along: vicuna_7b, vicuna_13b, lora_7b, offload_single_gpu,
    smollm2_cpu, smollm2_spot. Every field can be set as section.key=value.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that it does without


@vicuna.command()
@FRESH
@OVERRIDES
def demo(fresh: bool, overrides: tuple[str, ...]) -> None:
    """Chats to a fine-tuned model to an endpoint, end to end on this machine.

    A small real model learns who it is; a worker is killed on the way; the endpoint is asked. What an earlier run
    has finished is not done again. Example: vicuna demo --fresh data.identity.name=Ada data.identity.maker=ACME
    """
    from ray_apps.demo import run_demo

    run_demo(overrides, fresh=fresh)


class _RecipeGroup(click.Group):
    """A group whose first word is a recipe unless it is the name of a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            raise click.UsageError("Missing argument 'RECIPE'.", ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands:
            args = ["make", *args]
        return super().resolve_command(ctx, args)


@vicuna.group(
    cls=_RecipeGroup,
    context_settings={"ignore_unknown_options": True},
    subcommand_metavar="RECIPE [section.key=value]... | inspect DATASET",
)
def prep() -> None:
    """Turn the chats that RECIPE names into a training dataset.

    With --fresh, replace what is there. `vicuna prep inspect DATASET` shows what a dataset holds.
    """


@prep.command(hidden=True)
@click.argument("recipe")
@FRESH
@OVERRIDES
def make(recipe: str, fresh: bool, overrides: tuple[str, ...]) -> None:
    """Turn the chats that RECIPE names into a training dataset."""
    from ray_apps.recipe import data_section, load_recipe

    config = data_section(load_recipe(recipe, overrides), recipe)
    from ray_apps.stages import prep_stage

    prep_stage(config, fresh=fresh)


@prep.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--row", type=click.IntRange(min=0), help="The row to show, counted from 0.")
@click.option("--id", "identifier", help="Show the rows that hold this chat.")
def inspect(dataset: Path, row: int | None, identifier: str | None) -> None:
    """Show a training row of DATASET, trained tokens in colour."""
    from ray_apps.inspect_dataset import inspect_dataset

    inspect_dataset(dataset, row, identifier)


@vicuna.group(
    cls=_RecipeGroup,
    context_settings={"ignore_unknown_options": True},
    subcommand_metavar="RECIPE [section.key=value]... | plan RECIPE --gpu GPU",
)
def train() -> None:
    """Fine-tune as RECIPE says, or resume; then export the model.

    With --fresh, start over. `vicuna train plan RECIPE --gpu GPU` says what that will take, without a GPU.
    """


@train.command("make", hidden=True)
@click.argument("recipe")
@FRESH
@OVERRIDES
def fine_tune(recipe: str, fresh: bool, overrides: tuple[str, ...]) -> None:
    """Fine-tune as RECIPE says, or resume; then export the model."""
    from ray_apps.recipe import load_recipe, train_section

    config = train_section(load_recipe(recipe, overrides), recipe)
    from ray_apps.stages import export_stage, train_stage

    train_stage(config, fresh=fresh)
    export_stage(config, fresh=fresh)


@train.command()
@click.argument("recipe")
@click.option("--gpu", required=True, help="a100-80g, a800-80g, h100-80g, l4, rtx4090, …; a wrong one lists all.")
@click.option("--num-gpus", type=click.IntRange(min=1), help="Instead of the recipe's train.num_workers.")
@click.option("--price", type=click.FloatRange(min=0), help="Dollars per GPU and hour.")
@click.option("--rows", type=click.IntRange(min=1), help="Rows of the dataset, where it is not made yet.")
@click.option("--mfu", type=click.FloatRange(0, 1, min_open=True), help="Share of the GPU's peak that is reached; 0.4.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@OVERRIDES
def plan(
    recipe: str,
    gpu: str,
    num_gpus: int | None,
    price: float | None,
    rows: int | None,
    mfu: float | None,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Say what RECIPE's run will take: memory, steps, time, cost; and memory to serve the model.

    Needs no GPU and no weights, only the model's config. Example:
    vicuna train plan vicuna_7b --gpu a800-80g --num-gpus 2 --price 2
    """
    from ray_apps.recipe import load_recipe, train_section

    if num_gpus is not None:
        overrides = (*overrides, f"train.num_workers={num_gpus}")
    loaded = load_recipe(recipe, overrides)
    config = train_section(loaded, recipe)
    from ray_apps.train.plan.gpus import find_gpu

    find_gpu(gpu)
    from ray_apps.train.plan.report import report_plan

    context_length = loaded.data.context_length if loaded.data else None
    report_plan(config, gpu, context_length, num_rows=rows, mfu=mfu, price=price, as_json=as_json)


@vicuna.command()
@click.argument("recipe")
@OVERRIDES
def export(recipe: str, overrides: tuple[str, ...]) -> None:
    """Write the newest complete checkpoint of RECIPE's run as a model directory."""
    from ray_apps.recipe import load_recipe, train_section

    config = train_section(load_recipe(recipe, overrides), recipe)
    from ray_apps.stages import export_stage

    export_stage(config)


@vicuna.command()
@click.argument("config", type=click.Path(path_type=Path), default="serve_config.yaml")
@click.argument("overrides", nargs=-1, metavar="[args.key=value | http_options.key=value]...")
def serve(config: Path, overrides: tuple[str, ...]) -> None:
    """Serve the model of a Serve config file until Ctrl-C. Port 0 takes a free one.

    Example: vicuna serve serve_config.yaml args.model=artifacts/demo/model http_options.port=0
    """
    from ray_apps.serve.config_file import load_serve_file

    file = load_serve_file(config, overrides)
    from ray_apps.stages import serve_until_interrupted

    serve_until_interrupted(file)


@vicuna.command()
@click.argument("recipe", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a list for programs instead.")
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=30, show_default=True, metavar="SECONDS")
@OVERRIDES
def doctor(recipe: str | None, as_json: bool, wait_s: float, overrides: tuple[str, ...]) -> None:
    """Check what RECIPE needs, or this machine, before money is spent.

    Versions, devices, the model, exchange between workers, storage: each with its figures, and what to do about a
    problem. With RAY_ADDRESS it is the cluster that is checked, which is given --wait seconds to grow. Exit code 1 if
    there is a problem.
    """
    from ray_apps.doctor.needs import MACHINE, needs_of
    from ray_apps.recipe import load_recipe

    needs = MACHINE if recipe is None else needs_of(load_recipe(recipe, overrides))
    from ray_apps.doctor.examine import examine
    from ray_apps.doctor.report import print_json, print_report

    show = print_json if as_json else print_report
    if not show(examine(needs, wait_s=wait_s)):
        sys.exit(1)


@evaluate.command("run")
@click.argument("recipe")
@FRESH
@OVERRIDES
def evaluate_run(recipe: str, fresh: bool, overrides: tuple[str, ...]) -> None:
    """All in one go: serve the base and the tuned model of RECIPE, ask, judge, report.

    With --fresh, ask and judge everything anew. Example: vicuna eval run smollm2_cpu eval.questions=chinese
    """
    from ray_apps.recipe import eval_section, load_recipe, train_section

    loaded = load_recipe(recipe, overrides)
    config, train_config = eval_section(loaded, recipe), train_section(loaded, recipe)
    from ray_apps.stages import eval_stages

    eval_stages(config, train_config, fresh=fresh)


vicuna.add_command(chat)
vicuna.add_command(evaluate)
vicuna.add_command(spot)
vicuna.add_command(weights)


def main() -> None:
    """Run the command line; an error a user can mend is one line and exit code 1."""
    try:
        vicuna(standalone_mode=False)
    except VicunaError as error:
        for line in str(error).splitlines():
            click.echo(f"error: {line}", err=True)
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {where}{error.strerror or error}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; the same command goes on from here", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
