"""Deltas: what is added to a base to get a fine-tuned target, so that a target can be published without its base.

The form is that of the published Vicuna deltas (LMSYS, 2023): for each tensor target − base, in the type in which the
target is stored. Where the target has more tokens than the base, rows of the base that are not there count as zeros.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from data_prep.errors import ModelError
from ray_apps.weights.differences import differences
from ray_apps.weights.tensor_files import Spec, TensorFiles
from ray_apps.weights.tensor_writer import write_model

OnBytes = Callable[[int], None]
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


def apply_delta(base: TensorFiles, delta: TensorFiles, directory: Path, on_bytes: OnBytes = lambda count: None) -> None:
    """Write base + delta to `directory`, a tensor at a time, with as many rows per token as the delta has.

    Raises:
        ModelError: they differ in names or shapes; lists the differences.
    """
    _check(base, delta, ("base", "delta"))
    specs = {name: spec for name, spec in delta.specs.items() if name in base.specs}
    write_model(directory, specs, _applied(base, delta, specs), on_bytes=on_bytes)


def _applied(base: TensorFiles, delta: TensorFiles, specs: dict[str, Spec]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in delta.stream():
        if name in specs:
            yield name, _plus(base.read(name), tensor)


def _check(base: TensorFiles, other: TensorFiles, names: tuple[str, str]) -> None:
    found = differences(base.specs, other.specs, names)
    for files, what in ((base, names[0]), (other, names[1])):
        found += [
            f"{name}: {spec.dtype} in {what} cannot be added or subtracted; make-delta --exact takes any type"
            for name, spec in files.specs.items()
            if spec.dtype not in NUMBERS
        ]
    if found:
        whose = f"{names[1]} {str(other.directory)!r} does not belong to base {str(base.directory)!r}"
        raise ModelError("\n".join([f"{whose}:", *found]))


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
