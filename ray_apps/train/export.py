"""From a sharded checkpoint to a model directory, a shard at a time: no host ever holds the whole model."""

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from data_prep.chat_template import get_template
from data_prep.errors import RunError
from data_prep.folder import Folder
from data_prep.manifest import read_manifest
from data_prep.storage import check_replaceable, written_aside
from data_prep.tokenizer import load_tokenizer
from ray_apps.language_files import write_language
from ray_apps.lora import WEIGHTS, merged
from ray_apps.model_dir import ORIGIN, SHARD_BYTES, local_model_dir, stream_tensors, write_tensors
from ray_apps.models import check_causal_lm
from ray_apps.run_dir import Checkpoint, RunDir
from ray_apps.train.adapters import peft_config
from ray_apps.train.config import LoraSettings, TrainConfig
from ray_apps.train.receipt import run_receipt
from ray_apps.train.shards import ShardReader

READS_PER_SHARD = 8
"""A shard is read in so many parts: beside the one that is written there is never a second whole one in memory."""


def check_output(config: TrainConfig) -> None:
    """Refuse an output that would replace something else than an earlier export.

    Raises:
        ConfigError: naming the path.
    """
    check_replaceable(Path(config.output), ORIGIN, "train.output")


def check_run_settings(config: TrainConfig) -> None:
    """Refuse to take the run for one of other settings.

    Raises:
        RunError: naming each setting that differs.
    """
    run = RunDir(config.run_dir)
    if run.has_receipt():
        run.check_receipt(run_receipt(config, read_manifest(config.dataset)))


def is_exported(config: TrainConfig) -> bool:
    """Whether `config.output` already is the run's newest complete checkpoint.

    Raises:
        RunError: the run was made of something else than `config` says.
    """
    check_run_settings(config)
    chosen = _chosen(config)
    origin = Path(config.output) / ORIGIN
    return chosen is not None and origin.exists() and json.loads(origin.read_text()) == _origin(config, chosen.step)


def _chosen(config: TrainConfig) -> Checkpoint | None:
    run = RunDir(config.run_dir)
    return run.best_checkpoint() if config.export == "best" else run.latest_checkpoint()


def _origin(config: TrainConfig, step: int) -> dict[str, Any]:
    """What an exported model is made of."""
    form = "adapter" if config.lora and config.lora.export == "adapter" else "merged"
    return {"step": step, "form": form, "receipt": RunDir(config.run_dir).read_receipt()}


def export(config: TrainConfig) -> Path:
    """Write the run's newest complete checkpoint, or its best, to `config.output`: a model directory or adapters.

    The weights have the type of the base's, adapters are fp32. The chat template is the one the dataset was made with.

    Raises:
        RunError: the run has no such checkpoint yet, its bytes are not those that were written, or it was made of
            something else than `config` says.
    """
    chosen = _chosen(config)
    if chosen is None:
        what = (
            "checkpoint whose loss on rows held out was measured" if config.export == "best" else "complete checkpoint"
        )
        raise RunError(f"train.run_dir: {config.run_dir!r} has no {what}; run `vicuna train` first")
    check_output(config)
    base = local_model_dir(config.model)
    check_run_settings(config)
    if damage := chosen.damage():
        RunDir(config.run_dir).condemn(chosen, damage)
        raise RunError(
            f"checkpoint {chosen.folder} is damaged ({damage}) and no longer counts as complete; the same command "
            "again goes on from the one before"
        )
    checkpoint = chosen.folder
    with written_aside(Path(config.output)) as directory:
        if config.lora and config.lora.export == "adapter":
            _write_adapter(directory, checkpoint, config.lora, config.model)
        else:
            tensors = _merged(base, checkpoint, config.lora) if config.lora else _trained(base, checkpoint)
            write_tensors(directory, tensors)
            shutil.copy(base / "config.json", directory / "config.json")
        if (base / "tokenizer.model").exists():
            shutil.copy(base / "tokenizer.model", directory / "tokenizer.model")
        write_language(directory, load_tokenizer(config.model), get_template(read_manifest(config.dataset).template))
        (directory / ORIGIN).write_text(json.dumps(_origin(config, chosen.step), indent=2) + "\n")
    return Path(config.output)


def _weights(base: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The base's tensors, without buffers that some bases store though they are computed on loading.

    `rotary_emb.inv_freq` is one. Anything else under a name that the model does not have is refused before a run.
    """
    names = check_causal_lm(base).state_dict().keys()
    return ((name, tensor) for name, tensor in stream_tensors(base) if name in names)


def _trained(base: Path, checkpoint: Folder) -> Iterator[tuple[str, torch.Tensor]]:
    """The base's tensor names with the checkpoint's values, a part of a shard in memory at a time."""
    saved = _saved_names(base, checkpoint)
    group: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in _weights(base):
        group[name] = torch.empty_like(tensor, device="meta")
        size += 4 * tensor.numel()
        if size >= SHARD_BYTES // READS_PER_SHARD:
            yield from _read_as(checkpoint, group, saved)
            group, size = {}, 0
    yield from _read_as(checkpoint, group, saved)


def _saved_names(base: Path, checkpoint: Folder) -> dict[str, str]:
    """Under which of its names each weight is saved: one that is used twice has two, and may be saved once."""
    known = _tensors(checkpoint)
    names: dict[int, list[str]] = {}
    for name, parameter in check_causal_lm(base).named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {
        name: next((other for other in (name, *aliases) if f"model.{other}" in known), name)
        for aliases in names.values()
        for name in aliases
    }


def _read_as(
    checkpoint: Folder, group: dict[str, torch.Tensor], saved: dict[str, str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Values in the shapes and types of `group`. DeepSpeed's are saved flat."""
    keys = {name: f"model.{saved.get(name, name)}" for name in group}
    values = _read(checkpoint, sorted(set(keys.values())))
    for name, like in group.items():
        yield name, values[keys[name]].reshape(like.shape).to(like.dtype)


def _merged(base: Path, checkpoint: Folder, lora: LoraSettings) -> Iterator[tuple[str, torch.Tensor]]:
    """The base's tensors, with adapters added where there are any: W + alpha / r · B A.

    Raises:
        RunError: an adapter belongs to no tensor of the base.
    """
    adapters = _adapters(checkpoint, lora)
    for name, tensor in _weights(base):
        adapter = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        if adapter.format("A") in adapters:
            down, up = (adapters.pop(adapter.format(side)) for side in "AB")
            tensor = merged(tensor, down, up, lora.alpha / lora.r)
        yield name, tensor
    if adapters:
        raise RunError(f"checkpoint {checkpoint}: the base has no tensor for {len(adapters)} adapters, {min(adapters)}")


def _write_adapter(directory: Path, checkpoint: Folder, lora: LoraSettings, base: str) -> None:
    """What `peft.PeftModel.from_pretrained` reads."""
    peft_config(lora, base_model_name_or_path=base, inference_mode=True).save_pretrained(directory)
    save_file(_adapters(checkpoint, lora), directory / WEIGHTS, metadata={"format": "pt"})


def _adapters(checkpoint: Folder, lora: LoraSettings) -> dict[str, torch.Tensor]:
    """The adapters under the names that peft gives them in a file. A is `[r, in]`, B `[out, r]`."""
    keys = [key for key in _tensors(checkpoint) if key.startswith("model.") and ".lora_" in key]
    return {
        key.removeprefix("model.").replace(".default.", "."): value.reshape(
            (lora.r, -1) if ".lora_A." in key else (-1, lora.r)
        )
        for key, value in _read(checkpoint, keys).items()
    }


def _read(checkpoint: Folder, keys: list[str]) -> dict[str, torch.Tensor]:
    """Whole tensors of a sharded checkpoint."""
    known = _tensors(checkpoint)
    wanted: dict[str, Any] = {}
    for key in keys:
        if key not in known:
            raise RunError(f"checkpoint {checkpoint}: it has no tensor {key!r}")
        wanted[key] = torch.empty(known[key].size, dtype=known[key].properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as asked for by no_dist
        load(wanted, storage_reader=ShardReader(checkpoint), no_dist=True)
    return wanted


def _tensors(checkpoint: Folder) -> dict[str, TensorStorageMetadata]:
    metadata = ShardReader(checkpoint).read_metadata().state_dict_metadata
    return {key: value for key, value in metadata.items() if isinstance(value, TensorStorageMetadata)}
