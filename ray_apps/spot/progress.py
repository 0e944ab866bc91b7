"""How far a run is, from the lines of its metrics: what is left of it, and what a lost machine would take along."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray_apps.spot.job import JobSettings

ENOUGH_STEPS = 5
"""That many steps of the last start tell how long one takes."""


@dataclass(frozen=True)
class Progress:
    """`left_h`: hours of training that are left. `at_risk_h`: hours of training since the last checkpoint.

    `told_at`: when the last step was done, in seconds since 1970; None before there is one.
    """

    left_h: float
    at_risk_h: float = 0.0
    step: int = 0
    num_steps: int | None = None
    loss: float | None = None
    told_at: float | None = None

    def __str__(self) -> str:
        if self.num_steps is None:
            return "not begun"
        loss = "" if self.loss is None else f", loss {self.loss:.3f}"
        return f"step {self.step} of {self.num_steps}{loss}, {self.left_h:.2f} h left"


def read_progress(records: Iterable[dict[str, Any]], job: JobSettings) -> Progress:
    """The progress of a run, from the lines that `RunDir.read_metrics` gives.

    Before the last start has done enough steps, hours come from `job.work_h`.
    """
    step, num_steps, saved_step, loss, told_at = 0, None, 0, None, None
    seconds: list[tuple[float, int]] = []  # of the lines since the last start, and how many steps each is for
    for record in records:
        event = record.get("event")
        if event == "start":
            step = saved_step = record["step"]
            num_steps, seconds = record["num_steps"], []
        elif event == "checkpoint":
            saved_step = max(saved_step, record["step"])
        elif event is None and "loss" in record:
            seconds.append((record["seconds"], max(1, record["step"] - step)))
            step, loss, told_at = record["step"], record["loss"], record["time"]
    if num_steps is None:
        return Progress(job.work_h)
    pace_h = job.work_h / max(1, num_steps)
    if sum(count for _, count in seconds) >= ENOUGH_STEPS:
        pace_h = statistics.median(taken / count for taken, count in seconds) / 3600
    return Progress((num_steps - step) * pace_h, (step - saved_step) * pace_h, step, num_steps, loss, told_at)
