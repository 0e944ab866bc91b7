"""`vicuna chat`."""

import os
import sys
from pathlib import Path
from typing import Any, get_args

import click

from data_prep.errors import ChatError, ConfigError
from data_prep.storage import cache_directory
from ray_apps.chat.keyboard import Keyboard, Pipe
from ray_apps.chat.session import Session
from ray_apps.chat.styles import StyleName, build_style
from ray_apps.chat.talker import Sampling, Talker

DEMO = Path("artifacts/demo/model")
USUAL = Sampling()


@click.command()
@click.option("--model", help="A directory, an s3:// path or a hub id; the demo's model if neither is given.")
@click.option("--url", help="Any OpenAI-compatible endpoint; its key is OPENAI_API_KEY.")
@click.option("--model-name", help="Which of the endpoint's models; the first one if not given.")
@click.option("--style", type=click.Choice(get_args(StyleName)), help="rich in a terminal, else simple.")
@click.option("--system", help="The system prompt.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=USUAL.temperature, show_default=True)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=USUAL.top_p, show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(1), default=USUAL.max_tokens, show_default=True)
@click.option("--repetition-penalty", type=click.FloatRange(0, min_open=True), default=USUAL.repetition_penalty)
@click.option("--no-history", is_flag=True, help="Do not keep what is typed.")
@click.option("--multiline", is_flag=True, help="Escape and then Enter sends. Of a pipe, all of it is one message.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
@click.option("--num-gpus", type=click.IntRange(1), default=1, help="Spread the model's layers over so many.")
@click.option("--max-gpu-memory", metavar="SIZE", help="Of each GPU, such as 13GiB.")
@click.option("--load-8bit", is_flag=True, help="Weights of 8 bits, by bitsandbytes.")
@click.option("--load-4bit", is_flag=True, help="Weights of 4 bits (NF4), by bitsandbytes.")
def chat(
    model: str | None,
    url: str | None,
    model_name: str | None,
    style: StyleName | None,
    system: str | None,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    repetition_penalty: float,
    no_history: bool,
    multiline: bool,
    **placement: Any,
) -> None:
    """Talk with a model in the terminal; /help lists commands.

    Of a pipe, each line is a message: echo "Who are you?" | vicuna chat
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    chosen = style or ("rich" if is_terminal else "simple")
    talker = _talker(model, url, model_name, placement)
    try:
        sampling = Sampling(temperature, top_p, max_new_tokens, repetition_penalty)
        session = Session(talker, build_style(chosen, is_terminal=is_terminal), sampling, system)
        types = is_terminal and chosen != "programmatic"
        history = None if no_history else cache_directory().parent / "chat_history"
        keyboard = Keyboard("> ", history, is_multiline=multiline) if types else None
        session.run(keyboard or Pipe(sys.stdin, is_multiline=multiline))
    finally:
        talker.close()
    if session.has_failed and not is_terminal:
        sys.exit(1)


def _talker(model: str | None, url: str | None, model_name: str | None, placement: dict[str, Any]) -> Talker:
    if url is None:
        if model_name is not None:
            raise ConfigError("--model-name: is for --url; a directory is named with --model")
        return _local(model, **placement)
    if model is not None:
        raise ConfigError("--model: cannot be set together with --url; the endpoint's model is --model-name")
    from ray_apps.chat.endpoint import Endpoint

    return Endpoint(url, model_name, os.environ.get("OPENAI_API_KEY"))


def _local(
    model: str | None, device: str, num_gpus: int, max_gpu_memory: str | None, load_8bit: bool, load_4bit: bool
) -> Talker:
    if model is None:
        if not DEMO.is_dir():
            raise ChatError(f"give --model DIR or --url URL; the demo's model, {DEMO}, is not there")
        model = str(DEMO)
    if load_8bit and load_4bit:
        raise ConfigError("--load-8bit: cannot be set together with --load-4bit")
    if num_gpus > 1 or max_gpu_memory:
        _check_gpus(num_gpus)
    _check_device(device)
    from ray_apps.chat.local import LocalModel
    from ray_apps.engine.native.build import build_native
    from ray_apps.engine.options import EngineOptions

    options = EngineOptions(
        device=device,  # type: ignore[arg-type]
        quantize="int8" if load_8bit else "nf4" if load_4bit else None,
        device_map="auto" if num_gpus > 1 else None,
        max_memory=dict.fromkeys(range(num_gpus), max_gpu_memory) if max_gpu_memory else None,
        max_num_seqs=1,
    )
    return LocalModel(build_native(model, options), model)


def _check_device(device: str) -> None:
    """Return if there is such a device.

    Raises:
        ConfigError: there is none.
    """
    import torch

    is_there = {"cuda": torch.cuda.is_available(), "mps": bool(torch.backends.mps.is_available())}
    if not is_there.get(device, True):
        raise ConfigError(f"--device: {device!r} is not to be had here; valid: auto, cpu")


def _check_gpus(wanted: int) -> None:
    """Let this process see so many GPUs."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(wanted))))
    from ray_apps.machine import count_gpus

    if (there := count_gpus()) < wanted:
        raise ConfigError(f"--num-gpus, --max-gpu-memory: {wanted} GPUs are wanted; here are {there}")
