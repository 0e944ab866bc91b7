"""What writes a model directory: weights a tensor at a time, the other files from the side they belong to."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.errors import ModelError
from data_prep.storage import check_replaceable, local_model, written_aside
from ray_apps.console import stage
from ray_apps.model_dir import ORIGIN
from ray_apps.weights import delta as deltas
from ray_apps.weights.exact import apply_exact, is_exact, make_exact, num_bytes
from ray_apps.weights.tensor_files import FILES, TensorFiles, other_files
from ray_apps.weights.tensor_writer import write_model

GB = 1e9
TOKENIZER = "tokenizer.model"


def make_delta(base: str, target: str, output: Path, *, exact: bool = False) -> None:
    """Write target − base to the directory `output`; `exact`: in the form that gives the target bit for bit.

    Raises:
        ModelError: one of them cannot be read, or they do not belong together.
        ConfigError: `output` holds something that was not written here.
    """
    ours, theirs = TensorFiles(base), TensorFiles(target)
    make = make_exact if exact else deltas.make_delta
    with _written("make-delta", output, theirs.directory, theirs.num_bytes, base=base, target=target) as written:
        make(ours, theirs, *written)


def apply_delta(base: str, delta: str, output: Path) -> None:
    """Write base + delta to the directory `output`.

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


def to_safetensors(model: str, output: Path) -> None:
    """Write the same weights as safetensors to the directory `output`. Raises as `make_delta`."""
    files = TensorFiles(model)
    with _written("to-safetensors", output, files.directory, files.num_bytes, model=model) as (directory, on_bytes):
        write_model(directory, files.specs, files.stream(), on_bytes=on_bytes)


def convert_llama(source: Path, output: Path) -> None:
    """Write Meta's original files of a Llama as a model directory.

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
    command: str, output: Path, side: Path | None, total: int, **sources: str
) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """Where to write weights to, and whom to tell of bytes; the other files are those of the directory `side`."""
    check_replaceable(output, ORIGIN, "output")
    with stage("weights") as shown, written_aside(output) as directory:
        done = 0

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            shown.update(done, total, f"{done / GB:.2f} of {total / GB:.2f} GB")

        on_bytes(0)
        yield directory, on_bytes
        for path in [] if side is None else other_files(side):
            shutil.copy(path, directory / path.name)
        (directory / ORIGIN).write_text(json.dumps({"command": command, **sources}, indent=2) + "\n")
        shown.finish(f"{output}: {done / GB:.2f} GB")
