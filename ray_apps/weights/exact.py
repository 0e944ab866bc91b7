"""Exact deltas: applied to their base they give the target bit for bit, and any other base they refuse.

Of each tensor the exclusive or of the target's and the base's bits is kept, bytes of equal rank side by side,
compressed with Zstandard. Fine-tuning moves a weight by little: sign, exponent and the first bits of most stay the
same, and the bytes that hold them become zeros. Checksums of every tensor of base and target prove the result.

    exact.json    of each tensor: type, shape, SHA-256 of base and target, its place in exact.bin
    exact.bin     the compressed tensors, one after the other
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from data_prep.errors import ModelError
from ray_apps.weights.tensor_files import Spec, TensorFiles, as_bytes, checksum
from ray_apps.weights.tensor_writer import write_model

MANIFEST, DATA = "exact.json", "exact.bin"
CODEC = "zstd"

Bytes = npt.NDArray[np.uint8]
OnBytes = Callable[[int], None]


def is_exact(directory: Path) -> bool:
    """Whether it holds an exact delta."""
    return (directory / MANIFEST).is_file()


def make_exact(base: TensorFiles, target: TensorFiles, directory: Path, on_bytes: OnBytes = lambda count: None) -> None:
    """Write an exact delta to `directory`, a tensor at a time. What the base lacks is kept as it is."""
    entries: dict[str, dict[str, Any]] = {}
    with (directory / DATA).open("wb") as data:
        for name, tensor in target.stream():
            spec = target.specs[name]
            ours = base.read(name) if name in base.specs else None
            packed = _pack(_xor(as_bytes(tensor), ours), spec)
            entries[name] = {
                "dtype": spec.dtype,
                "shape": list(spec.shape),
                "base": None if ours is None else checksum(ours),
                "target": checksum(tensor),
                "at": data.tell(),
                "bytes": len(packed),
            }
            data.write(packed)
            on_bytes(spec.num_bytes)
    (directory / MANIFEST).write_text(json.dumps({"codec": CODEC, "tensors": entries}, indent=1) + "\n")


def apply_exact(base: TensorFiles, delta: Path, directory: Path, on_bytes: OnBytes = lambda count: None) -> None:
    """Write the target to `directory`, a tensor at a time.

    Raises:
        ModelError: the base is not the one that the delta was made from, naming the first tensor that differs; or the
            delta is damaged.
    """
    entries = read_manifest(delta)
    specs = {name: _spec(entry) for name, entry in entries.items()}
    write_model(directory, specs, _targets(base, delta, entries), on_bytes=on_bytes)


def read_manifest(delta: Path) -> dict[str, dict[str, Any]]:
    """What is known of each tensor, in the order of the target. Raises ModelError if it is no manifest."""
    path = delta / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        if manifest["codec"] != CODEC:
            raise ModelError(f"{path}: codec {manifest['codec']!r} is not known; valid: {CODEC}")
        return dict(manifest["tensors"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not the manifest of an exact delta: {error!r}") from None


def num_bytes(delta: Path) -> int:
    """Of the target's tensors."""
    return sum(_spec(entry).num_bytes for entry in read_manifest(delta).values())


def _targets(base: TensorFiles, delta: Path, entries: dict[str, dict[str, Any]]) -> Iterator[tuple[str, torch.Tensor]]:
    with (delta / DATA).open("rb") as data:
        for name, entry in entries.items():
            spec = _spec(entry)
            ours = base.read(name) if name in base.specs else None
            if entry["base"] is not None and (ours is None or checksum(ours) != entry["base"]):
                raise ModelError(
                    f"base {str(base.directory)!r} is not the one that {str(delta)!r} was made from: "
                    f"{name} {'is missing' if ours is None else 'differs'}"
                )
            data.seek(entry["at"])
            flat = _unpack(data.read(entry["bytes"]), spec, f"{delta / DATA}: {name}")
            bits = _xor(flat, ours if entry["base"] is not None else None)
            tensor = (
                torch.from_numpy(bits).view(spec.torch_dtype) if len(bits) else torch.empty(0, dtype=spec.torch_dtype)
            )
            tensor = tensor.reshape(spec.shape)
            if checksum(tensor) != entry["target"]:
                raise ModelError(f"{delta / DATA}: {name} is damaged: it does not give the target")
            yield name, tensor


def _spec(entry: dict[str, Any]) -> Spec:
    return Spec(entry["dtype"], tuple(entry["shape"]))


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
