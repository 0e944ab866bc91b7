"""Safetensors files that are written tensor by tensor: what is in memory is one tensor, whatever the size of a shard.

The format is that of <https://github.com/huggingface/safetensors>: eight bytes with the length of a JSON header, the
header with type, shape and place of each tensor, then the values.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from ray_apps.weights.tensor_files import DTYPES, Spec, as_bytes

SHARD_BYTES = 2 * 2**30
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_model(
    directory: Path,
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    on_bytes: Callable[[int], None] = lambda count: None,
    metadata: Mapping[str, str] | None = None,
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
    names = _file_names(len(shards))
    left = iter(tensors)
    for file_name, shard in zip(names, shards, strict=True):
        with (directory / file_name).open("wb") as file:
            file.write(_header({name: specs[name] for name in shard}, metadata or {}))
            for name in shard:
                given, tensor = next(left)
                if given != name or Spec.of(tensor) != specs[name]:
                    raise ValueError(f"{given} {Spec.of(tensor)} in place of {name} {specs[name]}")
                flat = as_bytes(tensor)
                file.write(flat.data)
                on_bytes(len(flat))
    if len(shards) > 1:
        weight_map = {name: file_name for file_name, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(spec.num_bytes for spec in specs.values())}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


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


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _header(specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
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
