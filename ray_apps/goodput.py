"""What a run's own record says about interruptions: steps done again, and time until work went on.

Goodput is productive, preserved time over elapsed time; a step is productive if no restart threw it away. The rest is
badput, in the buckets of Google's ML productivity goodput (2024): initialisation, saving, restoring, wasted, recovery.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
        if record.get("event") in ("launch", "warning"):
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


@dataclass
class Goodput:
    """Where the time of a run went, in seconds. Time between two commands, when nothing ran, is not of it.

    `productive`: optimiser steps that were kept. `initialisation`: from each command to its first step, without
    `restore`. `save`: training stood still for a checkpoint. `wasted`: steps that a restart threw away. `recovery`:
    from the last sign of life before an interruption to the first step after, without `restore`. `other`: what is left,
    such as evaluation.
    """

    productive: float = 0.0
    initialisation: float = 0.0
    save: float = 0.0
    restore: float = 0.0
    wasted: float = 0.0
    recovery: float = 0.0
    other: float = 0.0
    tokens: float = field(default=0.0, repr=False)
    """Of the productive steps."""

    @property
    def elapsed(self) -> float:
        """All of it."""
        return sum(self.buckets().values())

    def buckets(self) -> dict[str, float]:
        """Seconds by name."""
        names = ("productive", "initialisation", "save", "restore", "wasted", "recovery", "other")
        return {name: getattr(self, name) for name in names}


def account(records: Sequence[dict[str, Any]]) -> Goodput:
    """Where the time went, from the lines of the metrics."""
    goodput, kept = Goodput(), dict[int, tuple[float, float]]()
    cursor: float | None = None
    is_first, elapsed = True, 0.0
    for record in records:
        event = record.get("event")
        if event == "warning":
            continue
        if event == "launch":
            cursor, is_first = record["time"], True
            continue
        last = record["time"] if cursor is None else cursor
        gap, cursor = max(0.0, record["time"] - last), max(last, record["time"])
        elapsed += gap
        if event == "start":
            restore = min(gap, record.get("restore_s", 0.0))
            goodput.restore += restore
            if is_first:
                goodput.initialisation += gap - restore
            else:
                goodput.recovery += gap - restore
            is_first = False
            for step in [step for step in kept if step > record["step"]]:
                goodput.wasted += kept.pop(step)[0]
        elif event is None:
            kept[record["step"]] = (record.get("seconds", 0.0), record.get("tokens", 0.0))
        goodput.save += record.get("save_s", 0.0)
    goodput.productive = sum(seconds for seconds, _ in kept.values())
    goodput.tokens = sum(tokens for _, tokens in kept.values())
    goodput.other = max(0.0, elapsed - goodput.elapsed)
    return goodput
