"""Exact deltas: applied to their base they give the target bit for bit, and any other base they refuse.

Of each tensor the exclusive or of the target's and the base's bits is kept, bytes of equal rank side by side,
compressed with Zstandard. Fine-tuning moves a weight by little: sign, exponent and the first bits of most stay the
same, and the bytes that hold them become zeros. Checksums of every tensor of base and target prove the result.

    exact.json         of each tensor: type, shape, SHA-256 of base and target, its place
    exact-NNNNN.bin    the compressed tensors, one after the other, in parts of about two GiB
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from data_prep.errors import ModelError
from ray_apps.model_dir import SHARD_BYTES
from ray_apps.weights.tensor_files import DTYPES, Spec, TensorFiles, as_bytes, checksum
from ray_apps.weights.tensor_writer import write_model

MANIFEST = "exact.json"
CODEC = "zstd"

Bytes = npt.NDArray[np.uint8]
OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Entry:
    """A tensor in the manifest. `base`, `target`: SHA-256, or None where the base has no such tensor.

    `file`, `at`, `bytes`: where it lies compressed.
    """

    dtype: str
    shape: tuple[int, ...]
    base: str | None
    target: str
    file: str
    at: int
    bytes: int

    @classmethod
    def read(cls, fields: dict[str, Any]) -> "Entry":
        """From the manifest. Raises ValueError, KeyError or TypeError where it is none."""
        entry = cls(**fields)
        sizes = [*entry.shape, entry.at, entry.bytes]
        if entry.dtype not in DTYPES.values() or Path(entry.file).name != entry.file:
            raise ValueError(f"{entry.dtype}, {entry.file}")
        if not all(isinstance(size, int) and 0 <= size < 2**48 for size in sizes):
            raise ValueError(f"sizes {sizes}")
        return entry

    @property
    def spec(self) -> Spec:
        """Of the tensor of the target."""
        return Spec(self.dtype, tuple(self.shape))


def is_exact(directory: Path) -> bool:
    """Whether it holds an exact delta."""
    return (directory / MANIFEST).is_file()


def make_exact(
    base: TensorFiles,
    target: TensorFiles,
    directory: Path,
    on_bytes: OnBytes = lambda count: None,
    part_bytes: int = SHARD_BYTES,
) -> None:
    """Write an exact delta to `directory`, a tensor at a time. What the base lacks is kept as it is."""
    entries: dict[str, Entry] = {}
    with ExitStack() as opened:
        parts: list[BufferedWriter] = []
        for name, tensor in target.stream():
            spec = target.specs[name]
            ours = base.read(name) if name in base.specs else None
            packed = _pack(_xor(as_bytes(tensor), ours), spec)
            if not parts or parts[-1].tell() + len(packed) > part_bytes:
                path = directory / f"exact-{len(parts) + 1:05d}.bin"
                parts.append(opened.enter_context(path.open("wb")))
            entries[name] = Entry(
                dtype=spec.dtype,
                shape=spec.shape,
                base=None if ours is None else checksum(ours),
                target=checksum(tensor),
                file=Path(parts[-1].name).name,
                at=parts[-1].tell(),
                bytes=len(packed),
            )
            parts[-1].write(packed)
            on_bytes(spec.num_bytes)
    tensors = {name: asdict(entry) for name, entry in entries.items()}
    manifest = {"codec": CODEC, "checksum": _checksum(tensors), "tensors": tensors}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _checksum(tensors: dict[str, dict[str, Any]]) -> str:
    """Of what the manifest says of all tensors."""
    return hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()


def apply_exact(base: TensorFiles, delta: Path, directory: Path, on_bytes: OnBytes = lambda count: None) -> None:
    """Write the target to `directory`, a tensor at a time.

    Raises:
        ModelError: the base is not the one that the delta was made from, naming the first tensor that differs; or the
            delta is damaged.
    """
    entries = read_manifest(delta)
    if missing := [name for name, entry in entries.items() if entry.base is not None and name not in base.specs]:
        whose = f"base {str(base.directory)!r} is not the one that {str(delta)!r} was made from"
        raise ModelError("\n".join([f"{whose}:", *(f"{name}: is missing" for name in missing)]))
    specs = {name: entry.spec for name, entry in entries.items()}
    targets = ((name, _target(name, entry, base, delta)) for name, entry in entries.items())
    write_model(directory, specs, targets, on_bytes=on_bytes)


def read_manifest(delta: Path) -> dict[str, Entry]:
    """What is known of each tensor, in the order of the target.

    Raises:
        ModelError: it is no manifest, or a part that it names is not there.
    """
    path = delta / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        if manifest["codec"] != CODEC:
            raise ModelError(f"{path}: codec {manifest['codec']!r} is not known; valid: {CODEC}")
        if manifest["checksum"] != _checksum(manifest["tensors"]):
            raise ModelError(f"{path} is damaged: its checksum is not that of what it says")
        entries = {name: Entry.read(fields) for name, fields in manifest["tensors"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not the manifest of an exact delta: {error!r}") from None
    for file in sorted({entry.file for entry in entries.values()}):
        if not (delta / file).is_file():
            raise ModelError(f"exact delta {str(delta)!r}: {file}, which {MANIFEST} names, is not there")
    return entries


def num_bytes(delta: Path) -> int:
    """Of the target's tensors."""
    return sum(entry.spec.num_bytes for entry in read_manifest(delta).values())


def _target(name: str, entry: Entry, base: TensorFiles, delta: Path) -> torch.Tensor:
    ours = None if entry.base is None else base.read(name)
    if ours is not None and checksum(ours) != entry.base:
        raise ModelError(
            f"base {str(base.directory)!r} is not the one that {str(delta)!r} was made from: {name} differs"
        )
    with (delta / entry.file).open("rb") as data:
        data.seek(entry.at)
        flat = _unpack(data.read(entry.bytes), entry.spec, f"{delta / entry.file}: {name}")
    bits = torch.from_numpy(_xor(flat, ours))
    dtype = entry.spec.torch_dtype
    tensor = (bits.view(dtype) if len(bits) else torch.empty(0, dtype=dtype)).reshape(entry.spec.shape)
    if checksum(tensor) != entry.target:
        raise ModelError(f"{delta / entry.file}: {name} is damaged: it does not give the target")
    return tensor


def _xor(flat: Bytes, base: torch.Tensor | None) -> Bytes:
    """With the bytes of the base, as far as both go: where a vocabulary was extended its rows come first."""
    result = flat.copy()
    if base is not None:
        ours = as_bytes(base)
        count = min(len(ours), len(result))
        np.bitwise_xor(result[:count], ours[:count], out=result[:count])
    return result


def _pack(flat: Bytes, spec: Spec) -> bytes:
    planes = np.ascontiguousarray(flat.reshape(-1, spec.torch_dtype.itemsize).T)
    return bytes(pa.compress(planes.reshape(-1).data, codec=CODEC, asbytes=True))


def _unpack(packed: bytes, spec: Spec, where: str) -> Bytes:
    try:
        flat = pa.decompress(packed, decompressed_size=spec.num_bytes, codec=CODEC, asbytes=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{where} is damaged: {error}") from None
    planes = np.frombuffer(flat, dtype=np.uint8).reshape(spec.torch_dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1)
