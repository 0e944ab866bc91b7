"""What is refused before anything starts, for it could only fail later."""

import os

from data_prep.errors import ConfigError, DataError
from data_prep.manifest import Manifest, check_part_files, read_manifest
from data_prep.pack import ROW_SCHEMA_VERSION
from data_prep.tokenizer import fingerprint, load_tokenizer
from ray_apps.local_ray import available
from ray_apps.model_dir import local_model_dir
from ray_apps.run_dir import RunDir
from ray_apps.train.attention import has_flash_attention
from ray_apps.train.base_model import check_base
from ray_apps.train.combinations import check_combination
from ray_apps.train.config import TrainConfig
from ray_apps.train.export import check_output


def count_run_steps(config: TrainConfig, manifest: Manifest) -> int:
    """Optimiser steps of the run."""
    from ray_apps.train.loop import count_steps

    return count_steps(manifest.train.rows, config)


def check_run(config: TrainConfig) -> Manifest:
    """Refuse, before anything starts, what could only fail later; returns the dataset's manifest.

    Raises:
        DataError: the dataset is missing, of another version, or made with another tokenizer than the model's.
        ConfigError: its rows are longer than the model's context, the model lacks a module that `lora` names, or no row
            is held out for `eval_every_steps`.
        ModelError: the base model cannot be used.
        RunError: the batch is larger than the dataset.
    """
    check_combination(config)
    check_resources(config)
    RunDir(config.run_dir).check_replaceable()
    check_output(config)
    manifest = _manifest(config)
    if manifest.row_schema_version != ROW_SCHEMA_VERSION:
        raise DataError(
            f"train.dataset: {config.dataset!r} has rows of version {manifest.row_schema_version}, "
            f"this is version {ROW_SCHEMA_VERSION}; make it again with `vicuna prep --fresh`"
        )
    check_part_files(config.dataset, manifest)
    if manifest.train.trained_tokens == 0:
        raise DataError(f"train.dataset: {config.dataset!r} has no token to train on")
    if config.eval_every_steps and manifest.eval.trained_tokens == 0:
        raise ConfigError(
            f"train.eval_every_steps: {config.eval_every_steps} is not valid: {config.dataset!r} holds no rows out; "
            "make it with data.eval_fraction above 0"
        )
    directory = local_model_dir(config.model)
    if fingerprint(load_tokenizer(config.model)) != manifest.tokenizer_fingerprint:
        raise DataError(
            f"train.dataset: {config.dataset!r} was made with the tokenizer of {manifest.config['tokenizer']!r}, "
            f"which is not that of train.model {config.model!r}; make it again with `vicuna prep --fresh`"
        )
    check_base(config, directory, manifest.context_length)
    count_run_steps(config, manifest)
    return manifest


def _manifest(config: TrainConfig) -> Manifest:
    try:
        return read_manifest(config.dataset)
    except DataError as error:
        raise DataError(f"train.dataset: {error}") from None


def uses_gpu(config: TrainConfig) -> bool:
    """Whether its workers get a GPU each."""
    return available()["GPU"] > 0 if config.use_gpu == "auto" else config.use_gpu


def check_resources(config: TrainConfig) -> None:
    """Refuse more workers than this machine can run. A cluster that grows on demand is not asked.

    Raises:
        ConfigError: naming the field and what would be valid.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    there, use_gpu = available(), uses_gpu(config)
    if use_gpu and there["GPU"] == 0:
        raise ConfigError("train.use_gpu: True is not valid here: there is no GPU; expected 'auto' or False")
    if not use_gpu and config.fsdp.cpu_offload:
        raise ConfigError("train.fsdp.cpu_offload: True is not valid here: there is no GPU to offload from")
    if config.attention == "flash_attention_2" and not (use_gpu and has_flash_attention()):
        raise ConfigError(
            "train.attention: 'flash_attention_2' is not valid here: it needs a GPU and the package flash-attn; "
            "expected 'auto' or 'sdpa'"
        )
    most = there["CPU"] // config.cpus_per_worker
    if use_gpu:
        most = min(most, there["GPU"])
    if config.worker_range[0] > most:
        raise ConfigError(
            f"train.num_workers: {config.num_workers} is not valid here: with cpus_per_worker {config.cpus_per_worker} "
            f"there are {there['CPU']:.0f} CPUs and {there['GPU']:.0f} GPUs for at most {most:.0f}"
        )
