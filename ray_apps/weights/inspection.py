"""What a model directory holds, and what two of them differ in."""

from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ray_apps.console import console, stage
from ray_apps.weights.exact import is_exact, read_manifest
from ray_apps.weights.tensor_files import Spec, TensorFiles, checksum, fetch

WIDE = 10_000
"""Columns of an output that is no terminal: nothing is cut."""
BLOCK = 2**22
"""Numbers that are compared at a time."""


def inspect(model: str, other: str | None = None) -> bool:
    """Print a table of the tensors of `model`, or of those in which `other` differs; whether nothing differs.

    Of an exact delta the tensors of its target are listed, with their bytes in the delta.

    Raises:
        ModelError: one of them cannot be read.
    """
    directory = fetch(model)
    if other is None and is_exact(directory):
        _show(_table("tensor", "shape", "type", "bytes", "SHA-256"), _entries(directory))
        return True
    ours = TensorFiles(model)
    if other is None:
        _show(_table("tensor", "shape", "type", "bytes", "SHA-256"), _tensors(ours))
        console.print(f"{len(ours.specs):,} tensors, {ours.num_bytes:,} bytes in {len(ours.files)} files")
        return True
    return _compare(ours, TensorFiles(other))


def _show(table: Table, rows: Iterator[tuple[str, ...]]) -> None:
    for row in rows:
        table.add_row(*row)
    if console.is_terminal:
        console.print(table)
    else:
        Console(width=WIDE, highlight=False).print(table)


def _row(name: str, spec: Spec, num_bytes: int, digest: str) -> tuple[str, ...]:
    return name, " × ".join(f"{size:,}" for size in spec.shape), spec.dtype, f"{num_bytes:,}", digest[:12]


def _entries(directory: Path) -> Iterator[tuple[str, ...]]:
    for name, entry in read_manifest(directory).items():
        yield _row(name, entry.spec, entry.bytes, entry.target)


def _tensors(files: TensorFiles) -> Iterator[tuple[str, ...]]:
    done = 0
    with stage("inspect") as shown:
        for name, tensor in files.stream():
            spec = files.specs[name]
            done += spec.num_bytes
            shown.update(done, files.num_bytes)
            yield _row(name, spec, spec.num_bytes, checksum(tensor))


def _compare(ours: TensorFiles, theirs: TensorFiles) -> bool:
    rows = []
    num_same = done = 0
    with stage("inspect") as shown:
        for name in [*ours.specs, *(name for name in theirs.specs if name not in ours.specs)]:
            first, second = ours.specs.get(name), theirs.specs.get(name)
            done += first.num_bytes if first else 0
            shown.update(done, ours.num_bytes)
            if first != second or first is None:
                rows.append((name, str(first or "is missing"), str(second or "is missing"), ""))
                continue
            one, two = ours.read(name), theirs.read(name)
            if checksum(one) == checksum(two):
                num_same += 1
            else:
                rows.append((name, str(first), str(second), f"{largest_difference(one, two):.3g}"))
    if rows:
        _show(_table("tensor", "first", "second", "largest difference"), iter(rows))
    console.print(f"{num_same:,} tensors are the same bit for bit, {len(rows):,} differ")
    return not rows


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of two tensors of one shape, block by block."""
    blocks = zip(one.reshape(-1).split(BLOCK), other.reshape(-1).split(BLOCK), strict=True)
    return max(((first.double() - second.double()).abs().max().item() for first, second in blocks), default=0.0)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number > 0, overflow="fold")
    return table
