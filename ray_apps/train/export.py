"""From a sharded checkpoint to a model directory, a shard at a time: no host ever holds the whole model."""

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import GenerationConfig

from data_prep.chat_template import get_template
from data_prep.errors import RunError
from data_prep.folder import Folder
from data_prep.manifest import read_manifest
from data_prep.storage import check_replaceable, written_aside
from data_prep.tokenizer import encoders_of, load_tokenizer
from ray_apps.model_dir import ORIGIN, SHARD_BYTES, local_model_dir, stream_tensors, write_tensors
from ray_apps.models import check_causal_lm
from ray_apps.run_dir import Checkpoint, RunDir
from ray_apps.train.config import LoraSettings, TrainConfig
from ray_apps.train.receipt import run_receipt
from ray_apps.train.shards import ShardReader


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
    return {"step": step, "receipt": RunDir(config.run_dir).read_receipt()}


def export(config: TrainConfig) -> Path:
    """Write the run's newest complete checkpoint, or its best, to `config.output` as a model directory.

    The weights have the type of the base's. The chat template is the one the dataset was made with.

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
        raise RunError(f"checkpoint {chosen.folder} is damaged: {damage}; remove it, then the one before is taken")
    checkpoint = chosen.folder
    with written_aside(Path(config.output)) as directory:
        tensors = _merged(base, checkpoint, config.lora) if config.lora else _trained(base, checkpoint)
        write_tensors(directory, tensors)
        shutil.copy(base / "config.json", directory / "config.json")
        if (base / "tokenizer.model").exists():
            shutil.copy(base / "tokenizer.model", directory / "tokenizer.model")
        _write_tokenizer(directory, config)
        (directory / ORIGIN).write_text(json.dumps(_origin(config, chosen.step), indent=2) + "\n")
    return Path(config.output)


def _write_tokenizer(directory: Path, config: TrainConfig) -> None:
    tokenizer = load_tokenizer(config.model)
    template = get_template(read_manifest(config.dataset).template)
    tokenizer.chat_template = template.jinja(opens_with_bos=bool(encoders_of(tokenizer).for_templates.bos))
    tokenizer.save_pretrained(directory)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
        stop_strings=list(template.stop_strings) or None,
    ).save_pretrained(directory)


def _weights(base: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The base's tensors, without buffers that some bases store though they are computed on loading.

    `rotary_emb.inv_freq` is one. Anything else under a name that the model does not have is refused before a run.
    """
    names = check_causal_lm(base).state_dict().keys()
    return ((name, tensor) for name, tensor in stream_tensors(base) if name in names)


def _trained(base: Path, checkpoint: Folder) -> Iterator[tuple[str, torch.Tensor]]:
    """The base's tensor names with the checkpoint's values, about a shard in memory at a time."""
    group: dict[str, torch.dtype] = {}
    size = 0
    for name, tensor in _weights(base):
        group[name] = tensor.dtype
        size += 4 * tensor.numel()
        if size >= SHARD_BYTES:
            yield from _read_as(checkpoint, group)
            group, size = {}, 0
    yield from _read_as(checkpoint, group)


def _read_as(checkpoint: Folder, types: dict[str, torch.dtype]) -> Iterator[tuple[str, torch.Tensor]]:
    values = _read(checkpoint, [f"model.{name}" for name in types])
    for name, dtype in types.items():
        yield name, values.pop(f"model.{name}").to(dtype)


def _merged(base: Path, checkpoint: Folder, lora: LoraSettings) -> Iterator[tuple[str, torch.Tensor]]:
    """The base's tensors, with adapters added where there are any: W + alpha / r · B A.

    Raises:
        RunError: an adapter belongs to no tensor of the base.
    """
    known = ShardReader(checkpoint).read_metadata().state_dict_metadata
    adapters = _read(checkpoint, [key for key in known if key.startswith("model.") and ".lora_" in key])
    for name, tensor in _weights(base):
        adapter = f"model.base_model.model.{name.removesuffix('.weight')}.lora_{{}}.default.weight"
        if adapter.format("A") in adapters:
            delta = adapters.pop(adapter.format("B")) @ adapters.pop(adapter.format("A"))
            tensor = (tensor.float() + delta * (lora.alpha / lora.r)).to(tensor.dtype)
        yield name, tensor
    if adapters:
        raise RunError(f"checkpoint {checkpoint}: the base has no tensor for {len(adapters)} adapters, {min(adapters)}")


def _read(checkpoint: Folder, keys: list[str]) -> dict[str, torch.Tensor]:
    """Whole tensors of a sharded checkpoint."""
    known = ShardReader(checkpoint).read_metadata().state_dict_metadata
    wanted: dict[str, Any] = {}
    for key in keys:
        tensor = known.get(key)
        if not isinstance(tensor, TensorStorageMetadata):
            raise RunError(f"checkpoint {checkpoint}: it has no tensor {key!r}")
        wanted[key] = torch.empty(tensor.size, dtype=tensor.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as asked for by no_dist
        load(wanted, storage_reader=ShardReader(checkpoint), no_dist=True)
    return wanted
