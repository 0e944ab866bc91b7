"""Training with a pause after each step: a run of a tiny model lasts until Ray has seen a node come, up to 40 s."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_apps.train.saving import Keeper
from ray_apps.train.worker import train_loop_per_worker


def slowly(pause_s: float, until: Path | None = None) -> Callable[[dict[str, Any]], dict[str, str]]:
    """What each worker runs. `until`: once this file is there, there are no more pauses."""

    def train_slowly(values: dict[str, Any]) -> dict[str, str]:
        after_step = Keeper.after_step

        def pausing(*arguments: Any, **options: Any) -> bool:
            if until is None or not until.exists():
                time.sleep(pause_s)
            return after_step(*arguments, **options)

        Keeper.after_step = pausing  # type: ignore[method-assign]
        return train_loop_per_worker(values)

    return train_slowly
