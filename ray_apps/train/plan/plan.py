"""Put a plan together: the recipe, the model's config, the GPU and, where there is one, the dataset's manifest."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from data_prep.errors import ConfigError, DataError
from data_prep.manifest import MANIFEST_NAME, Manifest, read_manifest
from ray_apps.train.combinations import check_combination
from ray_apps.train.config import TrainConfig
from ray_apps.train.plan.duration import Duration, step_duration
from ray_apps.train.plan.gpus import find_gpu
from ray_apps.train.plan.memory import Memory, training_memory
from ray_apps.train.plan.serving import ServingMemory, serving_memory
from ray_apps.train.plan.shapes import find_model_config
from ray_apps.train.plan.tally import Anatomy, dissect


@dataclass(frozen=True)
class Rows:
    """What is trained on. `num_rows`: None where that is not known; `tokens`: of a row, on average."""

    context_length: int
    num_rows: int | None
    tokens: float
    source: str


@dataclass(frozen=True)
class Plan:
    """What a run will take."""

    model: str
    config_source: str
    gpu: str
    num_gpus: int
    gpu_memory_bytes: int
    rows: Rows
    anatomy: Anatomy
    memory: Memory
    duration: Duration
    mfu: float
    num_steps: int | None
    total_s: float | None
    cost: float | None
    """Dollars; None without a price or without rows."""
    serving: ServingMemory

    @property
    def free_bytes(self) -> int:
        """GPU memory left at the peak; below 0 the run does not fit."""
        return self.gpu_memory_bytes - self.memory.peak.total_bytes


def find_rows(config: TrainConfig, context_length: int | None, num_rows: int | None) -> Rows:
    """What `config.dataset` holds if it is there, else full rows of `context_length`, `num_rows` of them.

    Raises:
        ConfigError: there is neither a dataset nor a `data.context_length`.
        DataError: the dataset's manifest cannot be read.
    """
    if (Path(config.dataset) / MANIFEST_NAME).is_file():
        return _rows_of(read_manifest(config.dataset), num_rows, config.dataset)
    if context_length is None:
        raise ConfigError(
            f"train.dataset: {config.dataset!r} is not there yet, and the recipe has no section 'data' to take "
            "data.context_length from"
        )
    return Rows(context_length, num_rows, context_length, "the recipe: rows as full as they can be")


def _rows_of(manifest: Manifest, num_rows: int | None, dataset: str) -> Rows:
    train = manifest.train
    if train.rows == 0:
        raise DataError(f"train.dataset: {dataset!r} has no rows")
    return Rows(manifest.context_length, num_rows or train.rows, train.tokens / train.rows, f"the dataset {dataset}")


def _stored_bytes(model_config: PreTrainedConfig) -> int:
    """Bytes of one weight in the model's files; fp32 where its config does not say."""
    return model_config.dtype.itemsize if isinstance(model_config.dtype, torch.dtype) else 4


def _check_planned(config: TrainConfig) -> None:
    """Refuse what the figures would be wrong for."""
    for name, value, planned in (
        ("strategy", config.strategy, "fsdp"),
        ("optimizer", config.optimizer, "adamw"),
        ("quantize_base", config.quantize_base, None),
    ):
        if value != planned:
            raise ConfigError(f"train.{name}: {value!r} is not planned yet; expected {planned!r}")


def make_plan(config: TrainConfig, gpu_name: str, rows: Rows, mfu: float, price: float | None = None) -> Plan:
    """The plan of a run on as many GPUs as `config` has workers at most; `price`: dollars per GPU and hour.

    Raises:
        ConfigError: the GPU is not known, the model lacks a layer that `lora` names, or the settings are not planned.
        ModelError: the model's config cannot be had.
        RunError: there are fewer rows than one batch takes.
    """
    from ray_apps.train.loop import count_steps

    check_combination(config)
    _check_planned(config)
    gpu = find_gpu(gpu_name)
    model_config, source = find_model_config(config.model)
    anatomy = dissect(model_config, config, config.micro_batch_size * rows.context_length)
    duration = step_duration(anatomy, config, gpu, rows.tokens, mfu)
    num_steps = config.max_steps if rows.num_rows is None else count_steps(rows.num_rows, config)
    total_s = None if num_steps is None else num_steps * duration.step_s
    hourly = None if price is None else price * config.worker_range[1]
    return Plan(
        model=config.model,
        config_source=source,
        gpu=gpu_name,
        num_gpus=config.worker_range[1],
        gpu_memory_bytes=gpu.memory_bytes,
        rows=rows,
        anatomy=anatomy,
        memory=training_memory(anatomy, config, _stored_bytes(model_config)),
        duration=duration,
        mfu=mfu,
        num_steps=num_steps,
        total_s=total_s,
        cost=None if hourly is None or total_s is None else hourly * total_s / 3600,
        serving=serving_memory(model_config, rows.context_length),
    )
