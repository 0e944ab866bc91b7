"""Safetensors files that are written tensor by tensor: what is in memory is one tensor, whatever the size of a shard.

The format is that of <https://github.com/huggingface/safetensors>: eight bytes with the length of a JSON header, the
header with type, shape and place of each tensor, then the values.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from ray_apps.model_dir import SHARD_BYTES, shard_names, write_index
from ray_apps.weights.tensor_files import DTYPES, Spec, as_bytes

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_model(
    directory: Path,
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    on_bytes: Callable[[int], None] = lambda count: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `model.safetensors`, or shards of about `shard_bytes` with their index.

    Args:
        specs: of all tensors, in the order in which `tensors` gives them.
        on_bytes: called with the bytes of each tensor once it is written.

    Raises:
        ValueError: a tensor is not the next one of `specs`.
    """
    shards = _shards(specs, shard_bytes)
    names = shard_names(len(shards))
    left = iter(tensors)
    for file_name, shard in zip(names, shards, strict=True):
        with (directory / file_name).open("wb") as file:
            file.write(_header({name: specs[name] for name in shard}))
            for name in shard:
                given, tensor = next(left)
                if given != name or Spec.of(tensor) != specs[name]:
                    raise ValueError(f"{given} {Spec.of(tensor)} in place of {name} {specs[name]}")
                flat = as_bytes(tensor)
                file.write(flat.data)
                on_bytes(len(flat))
    total_bytes = sum(spec.num_bytes for spec in specs.values())
    write_index(directory, dict(zip(names, shards, strict=True)), total_bytes)


def _shards(specs: Mapping[str, Spec], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.num_bytes
    return shards


def _header(specs: Mapping[str, Spec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, spec in specs.items():
        entries[name] = {
            "dtype": NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [at, at + spec.num_bytes],
        }
        at += spec.num_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
