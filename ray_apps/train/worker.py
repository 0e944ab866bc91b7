"""The adapter between Ray Train and the loop: the only file that talks to `ray.train` from inside a worker."""

import logging
from typing import Any

import ray.train
import ray.train.torch

from ray_apps.train.config import TrainConfig
from ray_apps.train.errors import WouldFailAgain
from ray_apps.train.loop import run_training
from ray_apps.train.saving import Notice

logger = logging.getLogger(__name__)


def train_loop_per_worker(values: dict[str, Any]) -> None:
    """Run on every worker, with the process group up."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # Every rank reports, or Ray Train's barrier hangs. Checkpoints are committed by the run directory itself.
    try:
        run_training(TrainConfig(**values), ray.train.torch.get_device(), ray.train.report, preemption_notice)
    except WouldFailAgain:
        # Raised further, it would be tried again. Every rank returns here, and the launcher reads why in the record.
        logger.exception("the run has ended")


def preemption_notice() -> Notice | None:
    """The notice that the cluster has of a worker's machine. A collective: every rank calls it equally often."""
    info = ray.train.get_preemption_info()
    if info is None:
        return None
    deadline = info.deadline_ms / 1000 if info.deadline_ms else None
    return Notice(deadline, tuple(sorted(info.preempted_ranks)))
