"""Model directories: find one, stream its tensors, write one.

A model directory holds safetensors shards, the tokenizer with its chat template, `config.json` and
`generation_config.json`: what `AutoModelForCausalLM.from_pretrained` reads.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data_prep.errors import ModelError
from data_prep.storage import local_model

SHARD_BYTES = 2 * 2**30
SAMPLE_BYTES = 4 * 2**10
ORIGIN = "origin.json"  # what a model directory written here was made of


def local_model_dir(model: str) -> Path:
    """A local directory with the files of `model`: a directory, an `s3://` path or a hub id.

    Raises:
        ModelError: nothing is there, or it has no safetensors weights.
    """
    directory = local_model(model)
    weight_files(directory)
    return directory


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights: `model.safetensors`, or those that its index names.

    A directory may hold the same weights in another form beside them (`consolidated.safetensors`).

    Raises:
        ModelError: there are none, or the index is not readable.
    """
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        return [directory / name for name in sorted(names)]
    except FileNotFoundError:
        raise ModelError(f"model {str(directory)!r}: it has no *.safetensors weights") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"model {str(directory)!r}: {index.name} is not readable: {error}") from None


def fingerprint_model(directory: Path) -> str:
    """What tells two models apart: a hash of config, tensor names, types and shapes, and of values of every tensor.

    Of each tensor the first, the middle and the last `SAMPLE_BYTES` are read, so that 100 GB are looked at in seconds.
    16 hex digits.
    """
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for path in weight_files(directory):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(size)
            digest.update(header)
            for name, tensor in sorted(json.loads(header).items()):
                if name == "__metadata__":
                    continue
                start, end = tensor["data_offsets"]
                for place in (start, (start + end - SAMPLE_BYTES) // 2, end - SAMPLE_BYTES):
                    file.seek(8 + size + max(start, place))
                    digest.update(file.read(min(SAMPLE_BYTES, end - start)))
    return digest.hexdigest()[:16]


def tensor_names(directory: Path) -> set[str]:
    """Names of all tensors."""
    names: set[str] = set()
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return names


def stream_tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of each tensor, one in memory at a time."""
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                yield name, file.get_tensor(name)


def write_tensors(directory: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as safetensors shards of about `shard_bytes` with their index, one shard in memory at a time."""
    shard: dict[str, torch.Tensor] = {}
    written: list[list[str]] = []
    sizes: list[int] = []
    for name, tensor in tensors:
        if shard and sum(map(_num_bytes, shard.values())) + _num_bytes(tensor) > shard_bytes:
            sizes.append(_write_shard(directory, len(written), shard))
            written.append(list(shard))
            shard = {}
        shard[name] = tensor.detach().contiguous()
    sizes.append(_write_shard(directory, len(written), shard))
    written.append(list(shard))
    _name_shards(directory, written, sum(sizes))


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _write_shard(directory: Path, number: int, shard: dict[str, torch.Tensor]) -> int:
    save_file(shard, directory / f"shard-{number}", metadata={"format": "pt"})
    return sum(map(_num_bytes, shard.values()))


def _name_shards(directory: Path, written: list[list[str]], total_bytes: int) -> None:
    """Give the shards their final names, which tell how many there are."""
    names = shard_names(len(written))
    for number, name in enumerate(names):
        (directory / f"shard-{number}").rename(directory / name)
    write_index(directory, dict(zip(names, written, strict=True)), total_bytes)


def shard_names(count: int) -> list[str]:
    """What the files of a model's weights are called."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_index(directory: Path, shards: Mapping[str, Iterable[str]], total_bytes: int) -> None:
    """Say which of several files holds which tensors; one file needs no index."""
    if len(shards) == 1:
        return
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
