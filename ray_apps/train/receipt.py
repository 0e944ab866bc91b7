"""What decides the outcome of a run: it may only be resumed, and exported, with the same."""

from typing import Any

from data_prep.manifest import Manifest
from ray_apps.model_dir import fingerprint_model, local_model_dir
from ray_apps.train.config import TrainConfig

# Settings that change where and how a run is computed, but not what it computes.
NOT_IN_RECEIPT = {
    "activation_checkpointing",
    "attention",
    "checkpoint",
    "compile",
    "cpus_per_worker",
    "dataset",
    "deepspeed",
    "eval_every_steps",
    "fsdp",
    "log_every_steps",
    "max_failures",
    "micro_batch_size",
    "model",
    "num_workers",
    "output",
    "run_dir",
    "use_gpu",
}


def run_receipt(config: TrainConfig, manifest: Manifest) -> dict[str, Any]:
    """The settings that matter, what tells the base's weights apart, and what the dataset was made of."""
    settings = config.model_dump(exclude={**dict.fromkeys(NOT_IN_RECEIPT, True), "lora": {"export"}})
    settings["model.fingerprint"] = fingerprint_model(local_model_dir(config.model))
    dataset = {"tokenizer": manifest.tokenizer_fingerprint, "template": manifest.template}
    settings["dataset.config"] = {name: value for name, value in manifest.config.items() if name != "output"}
    sources = sorted(source.sha256[:16] for source in manifest.sources)
    counts = manifest.train.model_dump()
    return {**settings, **{f"dataset.{key}": value for key, value in {**dataset, "sources": sources, **counts}.items()}}
