"""What a run's own record says about interruptions: steps done again, and time until work went on.

Goodput is productive, preserved time over elapsed time; a step is productive if no restart threw it away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recovery:
    """One interruption.

    `lost_step`: the last step that was done before it. `resumed_step`: the step of the checkpoint it went on from.
    `seconds`: from the last sign of life before to the first new step after.
    """

    lost_step: int
    resumed_step: int
    seconds: float

    @property
    def steps_redone(self) -> int:
        """Steps whose work was thrown away."""
        return max(0, self.lost_step - self.resumed_step)


def find_recoveries(records: Sequence[dict[str, Any]]) -> list[Recovery]:
    """Every interruption in the lines of `metrics.jsonl`, in order."""
    recoveries: list[Recovery] = []
    last_step, last_time = 0, 0.0
    pending: tuple[int, int, float] | None = None
    for record in records:
        if record.get("event") == "launch":
            continue
        if record.get("event") == "start":
            lost, _, since = pending or (last_step, 0, last_time)  # a restart that died at once is the same recovery
            pending = (lost, record["step"], since) if since else None
        elif "event" not in record and pending is not None:
            lost, resumed, since = pending
            recoveries.append(Recovery(lost, resumed, record["time"] - since))
            pending = None
        last_step, last_time = record.get("step", last_step), record["time"]
    return recoveries
