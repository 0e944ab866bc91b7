"""`vicuna weights …`. Like the rest of the command line, each command imports what it needs when it runs."""

from typing import Any, get_args

import click

from ray_apps.engine.options import Quantization

OUTPUT = click.argument("output")
TEMPLATE = click.option("--template", metavar="NAME", help="Give it this chat template: vicuna_v1.1, llama-2, ...")


class _Interrupted(click.ClickException):
    exit_code = 130


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted("interrupted; nothing was written") from None


@click.group(cls=_Commands)
def weights() -> None:
    """Make model directories from others, a tensor at a time.

    BASE, TARGET, DELTA and MODEL are directories, s3:// paths or hub ids; weights are safetensors or .bin, whole or in
    shards. OUTPUT is a directory or an s3:// path; it is seen whole or not at all.
    """


@weights.command()
@click.argument("source")
@OUTPUT
@TEMPLATE
def convert_llama(source: str, output: str, template: str | None) -> None:
    """Write Meta's original files of a Llama, SOURCE, as a model directory.

    SOURCE holds params.json and consolidated.NN.pth; tokenizer.model is in it or in the directory above. Example:
    vicuna weights convert-llama LLaMA/7B llama-7b
    """
    from ray_apps.weights.convert import convert_llama

    convert_llama(source, output, template)


@weights.command()
@click.argument("base")
@click.argument("target")
@OUTPUT
@click.option("--exact", is_flag=True, help="In the form that gives TARGET bit for bit, and refuses another base.")
def make_delta(base: str, target: str, output: str, exact: bool) -> None:
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
@TEMPLATE
def apply_delta(base: str, delta: str, output: str, low_cpu_mem: bool, template: str | None) -> None:
    """Write BASE + DELTA, a plain one or an exact one; tokenizer, config and chat template are those of DELTA.

    Example: vicuna weights apply-delta llama-7b lmsys/vicuna-7b-delta-v1.1 vicuna-7b
    """
    from ray_apps.weights.convert import apply_delta

    if low_cpu_mem:
        click.echo("--low-cpu-mem: it is always so; a tensor of each side is in memory")
    apply_delta(base, delta, output, template)


@weights.command()
@click.argument("base")
@click.argument("adapter")
@OUTPUT
@TEMPLATE
def merge_lora(base: str, adapter: str, output: str, template: str | None) -> None:
    """Write BASE with ADAPTER, a directory of peft's, added to its weights.

    Tokenizer, chat template and generation config are those of ADAPTER where it has them.

    Example: vicuna weights merge-lora llama-7b artifacts/lora_7b/model vicuna-7b
    """
    from ray_apps.weights.convert import merge_lora

    merge_lora(base, adapter, output, template)


@weights.command()
@click.argument("model")
@OUTPUT
@click.option("--to", "form", type=click.Choice(get_args(Quantization)), required=True, help="Of 8 bits, or of 4.")
def quantize(model: str, output: str, form: Quantization) -> None:
    """Write MODEL with the weights of its linear layers in fewer bits, as bitsandbytes reads them.

    Example: vicuna weights quantize vicuna-7b vicuna-7b-nf4 --to nf4
    """
    from ray_apps.weights.convert import quantize

    quantize(model, output, form)


@weights.command()
@click.argument("model")
@OUTPUT
@TEMPLATE
def to_safetensors(model: str, output: str, template: str | None) -> None:
    """Write MODEL with its weights as safetensors, and a fast tokenizer where it has Llama's slow one."""
    from ray_apps.weights.convert import to_safetensors

    to_safetensors(model, output, template)


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
