"""What a model directory holds, and what two of them differ in."""

from rich.table import Table

from ray_apps.console import console
from ray_apps.weights.tensor_files import TensorFiles, checksum


def inspect(model: str, other: str | None = None) -> bool:
    """Print a table of the tensors of `model`, or of those in which `other` differs; whether nothing differs.

    Raises:
        ModelError: one of them cannot be read.
    """
    ours = TensorFiles(model)
    if other is None:
        _list(ours)
        return True
    return _compare(ours, TensorFiles(other))


def _list(files: TensorFiles) -> None:
    table = _table("tensor", "shape", "type", "bytes", "SHA-256")
    for name, tensor in files.stream():
        spec = files.specs[name]
        shape = " × ".join(f"{size:,}" for size in spec.shape)
        table.add_row(name, shape, spec.dtype, f"{spec.num_bytes:,}", checksum(tensor)[:12])
    console.print(table)
    console.print(f"{len(files.specs):,} tensors, {files.num_bytes:,} bytes in {len(files.files)} files")


def _compare(ours: TensorFiles, theirs: TensorFiles) -> bool:
    table = _table("tensor", "first", "second", "largest difference")
    num_same = 0
    for name in [*ours.specs, *(name for name in theirs.specs if name not in ours.specs)]:
        first, second = ours.specs.get(name), theirs.specs.get(name)
        if first != second or first is None:
            table.add_row(name, str(first or "is missing"), str(second or "is missing"), "")
            continue
        one, two = ours.read(name), theirs.read(name)
        if checksum(one) == checksum(two):
            num_same += 1
        else:
            table.add_row(name, str(first), str(second), f"{(one.double() - two.double()).abs().max():.3g}")
    if table.row_count:
        console.print(table)
    console.print(f"{num_same:,} tensors are the same bit for bit, {table.row_count:,} differ")
    return not table.row_count


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table
