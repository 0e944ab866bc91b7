"""What writes a model directory: weights a tensor at a time, the other files from the side they belong to."""

import json
import shutil
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from data_prep.errors import ModelError
from data_prep.storage import local_model
from ray_apps.console import stage
from ray_apps.engine.options import Quantization
from ray_apps.model_dir import ORIGIN, write_tensors
from ray_apps.weights import delta as deltas
from ray_apps.weights.exact import apply_exact, is_exact, make_exact, num_bytes
from ray_apps.weights.output import written_model
from ray_apps.weights.tensor_files import FILES, TensorFiles, other_files
from ray_apps.weights.tensor_writer import write_model

MB, GB = 1e6, 1e9
TOKENIZER = "tokenizer.model"


def make_delta(base: str, target: str, output: str, *, exact: bool = False) -> None:
    """Write target − base to `output`, a directory or an `s3://` path.

    `exact`: in the form that gives the target bit for bit, and refuses another base.

    Raises:
        ModelError: one of them cannot be read, or they do not belong together.
        ConfigError: `output` holds something that was not written here.
    """
    ours, theirs = TensorFiles(base), TensorFiles(target)
    make = make_exact if exact else deltas.make_delta
    with _written("make-delta", output, theirs.directory, theirs.num_bytes, base=base, target=target) as written:
        make(ours, theirs, *written)


def apply_delta(base: str, delta: str, output: str) -> None:
    """Write base + delta to `output`.

    Raises:
        ModelError: as `make_delta`; or an exact delta is damaged, or was made from another base.
        ConfigError: as `make_delta`.
    """
    ours, where = TensorFiles(base), local_model(delta, FILES)
    if is_exact(where):
        with _written("apply-delta", output, where, num_bytes(where), base=base, delta=delta) as written:
            apply_exact(ours, where, *written)
        return
    theirs = TensorFiles(delta)
    with _written("apply-delta", output, where, theirs.num_bytes, base=base, delta=delta) as written:
        deltas.apply_delta(ours, theirs, *written)


def to_safetensors(model: str, output: str) -> None:
    """Write the same weights as safetensors to `output`. Raises as `make_delta`."""
    files = TensorFiles(model)
    with _written("to-safetensors", output, files.directory, files.num_bytes, model=model) as (directory, on_bytes):
        write_model(directory, files.specs, files.stream(), on_bytes=on_bytes)


def merge_lora(base: str, adapter: str, output: str) -> None:
    """Write `base` with the adapter's products added to `output`.

    Tokenizer, chat template and generation config are the adapter's where it has them.

    Raises:
        ModelError: one of them cannot be read, or they do not belong together.
        ConfigError: as `make_delta`.
    """
    from ray_apps.weights.lora import LoraAdapter

    files, lora = TensorFiles(base), LoraAdapter(adapter)
    lora.check(files)
    written = _written("merge-lora", output, files.directory, files.num_bytes, base=base, adapter=adapter)
    with written as (directory, on_bytes):
        write_model(directory, files.specs, lora.merge(files), on_bytes=on_bytes)
        _copy_files(lora.directory, directory, but_not={"config.json", "adapter_config.json"})


def quantize(model: str, output: str, form: Quantization) -> None:
    """Write `model` with the weights of its linear layers in 8 or 4 bits to `output`.

    Raises:
        ModelError: it is no causal language model, or is quantised already.
        ConfigError: as `make_delta`.
    """
    from ray_apps.weights import quantize as quantizing

    files = TensorFiles(model)
    layers = quantizing.quantized_layers(files)
    written = _written("quantize", output, files.directory, files.num_bytes, model=model, form=form)
    with written as (directory, on_bytes):
        write_tensors(directory, quantizing.quantize(files, layers, form, on_bytes))
        config = json.loads((files.directory / "config.json").read_text())
        config["quantization_config"] = quantizing.quantization_config(form)
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def convert_llama(source: Path, output: str) -> None:
    """Write Meta's original files of a Llama as a model directory to `output`.

    Raises:
        ModelError: a file is missing or not whole.
        ConfigError: as `make_delta`.
    """
    from ray_apps.weights.meta import MetaLlama
    from ray_apps.weights.meta_tokenizer import convert_tokenizer

    llama = MetaLlama(source)
    tokenizer = next((path for path in (source / TOKENIZER, source.parent / TOKENIZER) if path.is_file()), None)
    if tokenizer is None:
        raise ModelError(f"{source}: there is no {TOKENIZER}, neither in it nor beside it")
    config, total = llama.config(), sum(spec.num_bytes for spec in llama.specs.values())
    with _written("convert-llama", output, None, total, source=str(source)) as (directory, on_bytes):
        write_model(directory, llama.specs, llama.stream(), on_bytes=on_bytes)
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        convert_tokenizer(tokenizer, directory, config["max_position_embeddings"])


@contextmanager
def _written(
    command: str, output: str, side: Path | None, total: int, **sources: str
) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """Where to write weights to, and whom to tell of bytes; the other files are those of the directory `side`.

    `total`: bytes of which will have been told at the end.
    """
    with stage("weights") as shown, written_model(output) as directory:
        done = 0

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            shown.update(done, total, f"{_size(done)} of {_size(total)}")

        on_bytes(0)
        yield directory, on_bytes
        if side is not None:
            _copy_files(side, directory)
        (directory / ORIGIN).write_text(json.dumps({"command": command, **sources}, indent=2) + "\n")
        size = sum(path.stat().st_size for path in directory.iterdir())
        shown.finish(f"{output}: {_size(size)}")


def _copy_files(source: Path, directory: Path, but_not: Set[str] = frozenset()) -> None:
    """Those beside the weights; what is there already stays."""
    for path in other_files(source):
        if path.name not in but_not and not (directory / path.name).exists():
            shutil.copy(path, directory / path.name)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GB:.2f} GB" if num_bytes >= GB / 10 else f"{num_bytes / MB:.2f} MB"
