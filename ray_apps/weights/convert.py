"""What writes a model directory: weights a tensor at a time, the other files from the side they belong to."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.storage import check_replaceable, written_aside
from ray_apps.console import stage
from ray_apps.model_dir import ORIGIN
from ray_apps.weights import delta as deltas
from ray_apps.weights.tensor_files import TensorFiles
from ray_apps.weights.tensor_writer import write_model

GB = 1e9


def make_delta(base: str, target: str, output: Path) -> None:
    """Write target − base to the directory `output`.

    Raises:
        ModelError: one of them cannot be read, or they do not belong together.
        ConfigError: `output` holds something that was not written here.
    """
    ours, theirs = TensorFiles(base), TensorFiles(target)
    with _written("make-delta", output, theirs, base=base, target=target) as (directory, on_bytes):
        deltas.make_delta(ours, theirs, directory, on_bytes)


def apply_delta(base: str, delta: str, output: Path) -> None:
    """Write base + delta to the directory `output`. Raises as `make_delta`."""
    ours, theirs = TensorFiles(base), TensorFiles(delta)
    with _written("apply-delta", output, theirs, base=base, delta=delta) as (directory, on_bytes):
        deltas.apply_delta(ours, theirs, directory, on_bytes)


def to_safetensors(model: str, output: Path) -> None:
    """Write the same weights as safetensors to the directory `output`. Raises as `make_delta`."""
    files = TensorFiles(model)
    with _written("to-safetensors", output, files, model=model) as (directory, on_bytes):
        write_model(directory, files.specs, files.stream(), on_bytes=on_bytes)


@contextmanager
def _written(
    command: str, output: Path, side: TensorFiles, **sources: str
) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """Where to write weights to, and whom to tell of bytes; the other files are those of `side`."""
    check_replaceable(output, ORIGIN, "output")
    with stage("weights") as shown, written_aside(output) as directory:
        done = 0

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            shown.update(done, side.num_bytes, f"{done / GB:.2f} of {side.num_bytes / GB:.2f} GB")

        on_bytes(0)
        yield directory, on_bytes
        for path in side.others():
            shutil.copy(path, directory / path.name)
        (directory / ORIGIN).write_text(json.dumps({"command": command, **sources}, indent=2) + "\n")
        shown.finish(f"{output}: {done / GB:.2f} GB")
