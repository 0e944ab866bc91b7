"""What a run is made of: what decides its outcome, with which alone it may be resumed; and what it ran with."""

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from data_prep.errors import RunError
from data_prep.manifest import Manifest
from ray_apps.model_dir import fingerprint_model, local_model_dir
from ray_apps.run_dir import RunDir
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
    "deterministic",
    "eval_every_steps",
    "export",
    "fsdp",
    "hang_timeout_s",
    "log_every_steps",
    "max_failures",
    "micro_batch_size",
    "model",
    "num_workers",
    "output",
    "resize_every_s",
    "run_dir",
    "use_gpu",
}

BASE = "model.fingerprint"

NAMED_PACKAGES = (
    *("torch", "transformers", "ray", "peft", "safetensors"),
    *("deepspeed", "bitsandbytes", "flash-attn", "liger-kernel"),
)
"""Those whose versions are told; the others are in the hash."""


def run_receipt(config: TrainConfig, manifest: Manifest) -> dict[str, Any]:
    """The settings that matter, what tells the base's weights apart, and what the dataset was made of."""
    settings = config.model_dump(exclude={**dict.fromkeys(NOT_IN_RECEIPT, True), "lora": {"export"}})
    settings[BASE] = fingerprint_model(local_model_dir(config.model))
    dataset = {"tokenizer": manifest.tokenizer_fingerprint, "template": manifest.template}
    settings["dataset.config"] = {name: value for name, value in manifest.config.items() if name != "output"}
    sources = sorted(source.sha256[:16] for source in manifest.sources)
    counts = manifest.train.model_dump()
    return {**settings, **{f"dataset.{key}": value for key, value in {**dataset, "sources": sources, **counts}.items()}}


def check_same_base(run: RunDir, directory: Path) -> None:
    """Refuse to go on with another base than the run began with: a hub id may stand for other weights by now.

    Raises:
        RunError: naming both fingerprints.
    """
    begun = (run.read_receipt() or {}).get(BASE)
    if begun is not None and (found := fingerprint_model(directory)) != begun:
        raise RunError(f"train.model: the run was begun with a base {begun}; {directory} is {found}")


def environment(config: TrainConfig) -> dict[str, Any]:
    """What a run runs with, which may change on resuming.

    Code, packages (and a hash of all versions), the machine of the command, and the settings that are not in
    `run_receipt`.
    """
    versions = {found.name.lower(): found.version for found in metadata.distributions()}
    packages = "\n".join(sorted(f"{name}=={version}" for name, version in versions.items()))
    return {
        "code": code_version(),
        "packages": hashlib.sha256(packages.encode()).hexdigest()[:16],
        "python": platform.python_version(),
        **{name: versions[name] for name in NAMED_PACKAGES if name in versions},
        "machine": f"{platform.node()}, {platform.machine()}",
        "settings": config.model_dump(mode="json", include={**dict.fromkeys(NOT_IN_RECEIPT, True), "lora": {"export"}}),
    }


def code_version() -> str:
    """The version of this package; in a checkout with its commit, marked where files differ from it."""
    version = metadata.version("vicuna-ray")
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607 - where it is varies
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return version
    return f"{version}+{described.stdout.strip()}"
