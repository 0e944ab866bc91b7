"""The adapter between Ray Train and the loop: the only file that talks to `ray.train` from inside a worker."""

import logging
import time
from typing import Any

import ray.train
import ray.train.torch

from ray_apps.train.config import TrainConfig
from ray_apps.train.errors import WouldFailAgain
from ray_apps.train.loop import run_training
from ray_apps.train.metrics import FAILED
from ray_apps.train.repeats import is_of_the_program
from ray_apps.train.saving import Notice

logger = logging.getLogger(__name__)

GONE_S = 30.0
"""Seconds after which the cluster has seen at the latest that a node is gone."""
UNTOLD_DEADLINE_S = 120.0
"""Seconds after a notice without a deadline for which Ray Train lets the workers go on."""


def train_loop_per_worker(values: dict[str, Any]) -> dict[str, str]:
    """Run on every worker, with the process group up; how the run ended, and why.

    `values`: the settings under `config`, and the name of the command under `launch`.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    notices = _Notices()
    # Every rank reports, or Ray Train's barrier hangs. Checkpoints are committed by the run directory itself.
    try:
        config, device = TrainConfig(**values["config"]), ray.train.torch.get_device()
        ended = run_training(config, device, ray.train.report, notices.look, launch=values["launch"])
        return {"ended": ended}
    except WouldFailAgain as error:
        # Raised further, it would be tried again. Every rank returns here, and the launcher is told why.
        logger.exception("the run has ended")
        return {"ended": FAILED, "message": str(error)}
    except Exception as error:
        if not is_of_the_program(error):
            notices.wait_for_the_dead()
        raise


class _Notices:
    """What the cluster says of machines that will be taken away."""

    def __init__(self) -> None:
        self._last: Notice | None = None

    def look(self) -> Notice | None:
        """The notice that there is of a worker's machine. A collective: every rank calls it equally often."""
        info = ray.train.get_preemption_info()
        if info is None:
            self._last = None
            return None
        ranks = tuple(sorted(info.preempted_ranks))
        if info.deadline_ms:
            self._last = Notice(info.deadline_ms / 1000, ranks)
        elif self._last is None or self._last.ranks != ranks:
            self._last = Notice(time.time() + UNTOLD_DEADLINE_S, ranks)
        return self._last

    def wait_for_the_dead(self) -> None:
        """After an error beside a machine of which there was notice, give the cluster time to see that it is gone.

        A worker's lost connection would count as a failure of its own; a machine that was taken away does not.
        """
        if self._last is not None and ray.train.get_context().get_world_rank() not in self._last.ranks:
            logger.warning("an error after the notice that ranks %s will be taken away", self._last.ranks)
            time.sleep(GONE_S)
