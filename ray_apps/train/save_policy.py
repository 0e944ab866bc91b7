"""When to save: a pure policy."""

import math
from dataclasses import dataclass

from ray_apps.train.config import CheckpointSettings

FIRST_SAVE_AGAIN_S = 60.0
"""With `every_s: auto`, seconds until the next save as long as none has succeeded."""


@dataclass(frozen=True)
class SaveCosts:
    """What was measured in this run, in seconds.

    `blocked_s`: training stood still for a save. `total_s`: from its start until it was complete. `restart_s`: from the
    start of the process to its first step.
    """

    blocked_s: float
    total_s: float
    restart_s: float


def best_interval_s(save_s: float, restart_s: float, between_failures_s: float) -> float:
    """Seconds of work between two saves that leave the most useful time: Ts + √(2 (Tf + Tr) Ts + Ts²).

    The optimum of availability for a save time Ts, a mean time to failure Tf and a restart time Tr; without the last
    two terms it is Young's √(2 Ts Tf) (Young 1974; Daly 2006).
    """
    return save_s + math.sqrt(2 * (between_failures_s + restart_s) * save_s + save_s**2)


@dataclass(frozen=True)
class SavePolicy:
    """Save after so many steps, after so many seconds, and after the last step."""

    settings: CheckpointSettings
    num_steps: int

    def is_due(self, step: int, seconds_since_save: float, costs: SaveCosts | None, *, tried: bool = False) -> bool:
        """Whether to save now that `step` steps are done.

        With `every_s: auto` the first save comes at once: its cost is not known before. `tried`: it has begun.
        """
        every_steps = self.settings.every_steps
        if step == self.num_steps or (every_steps and step % every_steps == 0):
            return True
        return seconds_since_save >= self._interval_s(costs, tried)

    def _interval_s(self, costs: SaveCosts | None, tried: bool) -> float:
        every_s, between = self.settings.every_s, self.settings.mean_time_between_preemptions_s
        if every_s != "auto":
            return math.inf if every_s is None else every_s
        assert between is not None
        if costs is None:
            return FIRST_SAVE_AGAIN_S if tried else 0.0
        return max(costs.total_s, best_interval_s(costs.blocked_s, costs.restart_s, between))
