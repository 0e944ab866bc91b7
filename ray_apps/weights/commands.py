"""`vicuna weights …`. Like the rest of the command line, each command imports what it needs when it runs."""

from pathlib import Path

import click

OUTPUT = click.argument("output", type=click.Path(path_type=Path))


@click.group()
def weights() -> None:
    """Make model directories from others, a tensor at a time.

    BASE, TARGET, DELTA and MODEL are directories, s3:// paths or hub ids; weights are safetensors or .bin, whole or in
    shards. OUTPUT is a directory that is seen whole or not at all.
    """


@weights.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@OUTPUT
def convert_llama(source: Path, output: Path) -> None:
    """Write Meta's original files of a Llama, SOURCE, as a model directory.

    SOURCE holds params.json and consolidated.NN.pth; tokenizer.model is in it or in the directory above. Example:
    vicuna weights convert-llama LLaMA/7B llama-7b
    """
    from ray_apps.weights.convert import convert_llama

    convert_llama(source, output)


@weights.command()
@click.argument("base")
@click.argument("target")
@OUTPUT
@click.option("--exact", is_flag=True, help="In the form that gives TARGET bit for bit, and refuses another base.")
def make_delta(base: str, target: str, output: Path, exact: bool) -> None:
    """Write what has to be added to BASE to get TARGET; tokenizer, config and chat template are those of TARGET.

    Example: vicuna weights make-delta llama-7b artifacts/vicuna_7b/model vicuna-7b-delta
    """
    from ray_apps.weights.convert import make_delta

    make_delta(base, target, output, exact=exact)


@weights.command()
@click.argument("base")
@click.argument("delta")
@OUTPUT
@click.option("--low-cpu-mem", is_flag=True, help="It is always so: one tensor of each is in memory.")
def apply_delta(base: str, delta: str, output: Path, low_cpu_mem: bool) -> None:
    """Write BASE + DELTA, a plain one or an exact one; tokenizer, config and chat template are those of DELTA.

    Example: vicuna weights apply-delta llama-7b lmsys/vicuna-7b-delta-v1.1 vicuna-7b
    """
    from ray_apps.weights.convert import apply_delta

    apply_delta(base, delta, output)


@weights.command()
@click.argument("model")
@OUTPUT
def to_safetensors(model: str, output: Path) -> None:
    """Write MODEL with its weights as safetensors; its other files stay as they are."""
    from ray_apps.weights.convert import to_safetensors

    to_safetensors(model, output)


@weights.command()
@click.argument("model")
@click.argument("other", required=False)
def inspect(model: str, other: str | None) -> None:
    """List the tensors of MODEL with shape, type, bytes and checksum; or in what it differs from OTHER.

    Exits with 1 if the two differ.
    """
    from ray_apps.weights.inspection import inspect

    if not inspect(model, other):
        raise SystemExit(1)
