"""What a run reports about itself: one line per step and event in `metrics.jsonl`, and curves for TensorBoard."""

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ray_apps.run_dir import RunDir

logger = logging.getLogger(__name__)

LAUNCHED = "launch"
"""The event of a command that starts or resumes the run, before it has workers."""

FAILED = "failed"
"""The event of a run that would fail again; its `message` says why."""

ERROR = "error"
"""The event of a rank that failed by itself, after the step and with the message in it."""

STOPPED = "stopped"
"""The event of a run that was asked to end before its last step, and saved."""

CURVES = ("loss", "learning_rate", "grad_norm", "tokens_per_s")


class MetricsWriter:
    """Writes on rank 0 and is silent elsewhere.

    A step is recorded every `every_steps` steps, with the tokens and seconds of those since the last.
    """

    def __init__(
        self, run: RunDir, *, active: bool, resumed_step: int, every_steps: int = 1, last_step: int = 0
    ) -> None:
        self._run = run if active else None
        self._every_steps = every_steps
        self._last_step = last_step
        self._seconds = self._tokens = self._save_s = 0.0
        # TensorBoard's writer wants a disk; on S3 its files are copied there after each event.
        self._scratch = tempfile.TemporaryDirectory() if active and run.folder.is_remote else None
        directory = self._scratch.name if self._scratch else run.tensorboard.path
        self._curves = SummaryWriter(directory, purge_step=resumed_step) if active else None

    def event(self, name: str, **values: Any) -> None:
        """Record that something happened."""
        self._append({"event": name, "time": time.time(), **values})
        self._publish_curves()

    def blocked(self, seconds: float) -> None:
        """Training stood still for a save; the next record says so."""
        self._save_s += seconds

    def _append(self, record: dict[str, Any]) -> None:
        if self._run is None:
            return
        if self._save_s:
            record, self._save_s = {**record, "save_s": self._save_s}, 0.0
        try:
            self._run.append_metrics(record)
        except OSError as error:  # a full disk ends no run
            logger.warning("%s: the metrics cannot be written: %s", self._run.folder, error)

    def _publish_curves(self) -> None:
        if self._run is None or self._curves is None or self._scratch is None:
            return
        try:
            self._curves.flush()
            self._run.tensorboard.upload(Path(self._scratch.name))
        except OSError as error:
            logger.warning("%s: the curves cannot be written: %s", self._run.folder, error)

    def step(self, step: int, measures: dict[str, float], seconds: float) -> None:
        """Take note of optimiser step `step`, counted from 1, which took `seconds`."""
        if self._run is None:
            return
        self._seconds += seconds
        self._tokens += measures["tokens"]
        if step % self._every_steps and step != self._last_step:
            return
        values = {**measures, "tokens": self._tokens, "tokens_per_s": self._tokens / self._seconds}
        self._append({"time": time.time(), "step": step, **values, "seconds": self._seconds})
        self._seconds = self._tokens = 0.0
        self._draw(step, **{f"train/{name}": values[name] for name in CURVES})
        logger.info(
            "step=%d loss=%.4f learning_rate=%.2e tokens_per_s=%.0f",
            *(step, values["loss"], values["learning_rate"], values["tokens_per_s"]),
        )

    def held_out(self, step: int, loss: float | None) -> None:
        """Record the loss on the rows held out, if it was looked at."""
        if loss is None:
            return
        self.event("eval", step=step, eval_loss=loss)
        self._draw(step, **{"eval/loss": loss})

    def _draw(self, step: int, **points: float) -> None:
        """Add to the curves. TensorBoard tells of a full disk at some later call: from then on there are none."""
        try:
            for name, value in points.items():
                if self._curves is not None:
                    self._curves.add_scalar(name, value, step)
        except OSError as error:
            logger.warning("no more curves: %s", error)
            self._curves = None

    def close(self) -> None:
        """Flush the curves."""
        try:
            if self._curves is not None:
                self._curves.close()
        except OSError as error:
            logger.warning("the curves lack their end: %s", error)
        self._publish_curves()
        if self._scratch is not None:
            self._scratch.cleanup()
