"""What a run reports about itself: one line per step and event in `metrics.jsonl`, and curves for TensorBoard."""

import logging
import time
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ray_apps.run_dir import RunDir

logger = logging.getLogger(__name__)

FAILED = "failed"
"""The event of a run that would fail again; its `message` says why."""

CURVES = ("loss", "learning_rate", "grad_norm", "tokens_per_s")


class MetricsWriter:
    """Writes on rank 0 and is silent elsewhere."""

    def __init__(self, run: RunDir, *, active: bool, resumed_step: int) -> None:
        self._run = run if active else None
        self._curves = SummaryWriter(run.tensorboard, purge_step=resumed_step) if active else None

    def event(self, name: str, **values: Any) -> None:
        """Record that something happened."""
        self._append({"event": name, "time": time.time(), **values})

    def _append(self, record: dict[str, Any]) -> None:
        if self._run is None:
            return
        try:
            self._run.append_metrics(record)
        except OSError as error:  # a full disk ends no run
            logger.warning("%s: %s", self._run.metrics, error)

    def step(self, **values: float) -> None:
        """Record one optimiser step; `step` counts from 1."""
        if self._run is None or self._curves is None:
            return
        self._append({"time": time.time(), **values})
        for name in CURVES:
            self._curves.add_scalar(f"train/{name}", values[name], int(values["step"]))
        logger.info(
            "step=%d loss=%.4f learning_rate=%.2e tokens_per_s=%.0f",
            *(values[name] for name in ("step", "loss", "learning_rate", "tokens_per_s")),
        )

    def held_out(self, step: int, loss: float) -> None:
        """Record the loss on the rows held out."""
        self.event("eval", step=step, eval_loss=loss)
        if self._curves is not None:
            self._curves.add_scalar("eval/loss", loss, step)

    def close(self) -> None:
        """Flush the curves."""
        if self._curves is not None:
            self._curves.close()
