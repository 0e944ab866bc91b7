"""Deltas: what is added to a base to get a fine-tuned target, so that a target can be published without its base.

The form is that of the published Vicuna deltas (LMSYS, 2023): for each tensor target − base, in the type in which the
target is stored. Where the target has more tokens than the base, rows of the base that are not there count as zeros.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from data_prep.errors import ModelError
from ray_apps.weights.differences import differences
from ray_apps.weights.tensor_files import Spec, TensorFiles, as_bytes
from ray_apps.weights.tensor_writer import write_model

OnBytes = Callable[[int], None]
MANIFEST = "delta.json"
SAMPLE = 4096
"""Numbers, and bytes, of each tensor of the base that are looked at."""
NUMBERS = {"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8"}
"""Types that are added and subtracted."""


def make_delta(base: TensorFiles, target: TensorFiles, directory: Path, on_bytes: OnBytes = lambda count: None) -> None:
    """Write target − base to `directory`, a tensor at a time.

    Buffers that only one of the two has, and that a model computes by itself, are left out.

    Raises:
        ModelError: they differ in names or shapes; lists the differences.
    """
    _check(base, target, ("base", "target"))
    specs = {name: spec for name, spec in target.specs.items() if name in base.specs}
    deltas = ((name, _minus(tensor, base.read(name))) for name, tensor in target.stream() if name in specs)
    write_model(directory, specs, deltas, on_bytes=on_bytes)
    (directory / MANIFEST).write_text(json.dumps({"base_sample": _sample(base, specs)}) + "\n")


def apply_delta(base: TensorFiles, delta: TensorFiles, directory: Path, on_bytes: OnBytes = lambda count: None) -> None:
    """Write base + delta to `directory`, a tensor at a time, with as many rows per token as the delta has.

    Raises:
        ModelError: they differ in names or shapes, listing the differences; or the delta was made here, from another
            base.
    """
    _check(base, delta, ("base", "delta"))
    specs = {name: spec for name, spec in delta.specs.items() if name in base.specs}
    _check_sample(base, delta, specs)
    write_model(directory, specs, _applied(base, delta, specs), on_bytes=on_bytes)


def _check_sample(base: TensorFiles, delta: TensorFiles, names: Iterable[str]) -> None:
    """Refuse a base of which the delta says that it was not made from it. Published ones say nothing."""
    try:
        sample = json.loads((delta.directory / MANIFEST).read_text())["base_sample"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{delta.directory / MANIFEST} is damaged") from None
    if sample != _sample(base, names):
        raise ModelError(f"base {str(base.directory)!r} is not the one that {str(delta.directory)!r} was made from")


def _applied(base: TensorFiles, delta: TensorFiles, specs: dict[str, Spec]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in delta.stream():
        if name in specs:
            yield name, _plus(base.read(name), tensor)


def check_shapes(base: TensorFiles, other: TensorFiles, names: tuple[str, str]) -> None:
    """Hold names and shapes of two against each other; `names`: what they are called.

    Raises:
        ModelError: they do not belong together; lists the differences, a line each.
    """
    _refuse(base, other, names, differences(base.specs, other.specs, names))


def _check(base: TensorFiles, other: TensorFiles, names: tuple[str, str]) -> None:
    found = differences(base.specs, other.specs, names)
    for files, what in ((base, names[0]), (other, names[1])):
        found += [
            f"{name}: {spec.dtype} in {what} cannot be added or subtracted; make-delta --exact takes any type"
            for name, spec in files.specs.items()
            if spec.dtype not in NUMBERS
        ]
    _refuse(base, other, names, found)


def _refuse(base: TensorFiles, other: TensorFiles, names: tuple[str, str], found: Sequence[str]) -> None:
    if found:
        whose = f"{names[1]} {str(other.directory)!r} does not belong to base {str(base.directory)!r}"
        raise ModelError("\n".join([f"{whose}:", *found]))


def _sample(base: TensorFiles, names: Iterable[str]) -> str:
    """What tells one base from another of the same shapes: a hash of the first bytes of each of its tensors."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(as_bytes(base.read(name).reshape(-1)[:SAMPLE])[:SAMPLE].tobytes())
    return digest.hexdigest()


def _minus(target: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """In the type of the target; rows that only the target has stay as they are."""
    if target.shape == base.shape:
        return target - base.to(target.dtype)
    rows = min(len(target), len(base))
    result = target.clone()
    result[:rows] -= base[:rows].to(target.dtype)
    return result


def _plus(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """In the type of the delta, with its rows."""
    if delta.shape == base.shape:
        return base.to(delta.dtype) + delta
    rows = min(len(delta), len(base))
    result = delta.clone()
    result[:rows] += base[:rows].to(delta.dtype)
    return result
