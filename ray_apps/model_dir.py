"""Model directories: find one, stream its tensors, write one.

A model directory holds safetensors shards, the tokenizer with its chat template, `config.json` and
`generation_config.json`: what `AutoModelForCausalLM.from_pretrained` reads.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from data_prep.errors import ModelError
from data_prep.storage import local_model

SHARD_BYTES = 2 * 2**30
SAMPLES, SAMPLE_BYTES = 64, 16 * 2**10
ORIGIN = "origin.json"  # what a model directory written here was made of


def local_model_dir(model: str) -> Path:
    """A local directory with the files of `model`: a directory, an `s3://` path or a hub id.

    Raises:
        ModelError: nothing is there, or it has no safetensors weights.
    """
    directory = local_model(model)
    if not any(directory.glob("*.safetensors")):
        raise ModelError(f"model {model!r}: it has no *.safetensors weights")
    return directory


def fingerprint_weights(directory: Path) -> str:
    """What tells the weights of two models apart: a hash of names, types, shapes and a sample of the values.

    Each file gives its header and `SAMPLES` pieces of `SAMPLE_BYTES`, evenly spread, so that 100 GB are looked at in a
    moment. 16 hex digits.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(8)
            digest.update(header + file.read(int.from_bytes(header, "little")))
            for number in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * number // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def stream_tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of each tensor, one in memory at a time."""
    for path in sorted(directory.glob("*.safetensors")):
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
    if len(written) == 1:
        (directory / "shard-0").rename(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(written):
        file = f"model-{number + 1:05d}-of-{len(written):05d}.safetensors"
        (directory / f"shard-{number}").rename(directory / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
