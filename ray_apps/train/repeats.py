"""An error that would come again ends the run, and does not restart it as often as failures may."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

from ray_apps.run_dir import RunDir
from ray_apps.train.errors import OF_THE_PROGRAM, SameErrorAgain
from ray_apps.train.metrics import ERROR, FAILED, LAUNCHED
from ray_apps.train.watchdog import Watchdog


def refuse_to_repeat(run: RunDir) -> None:
    """End a run that the same error has ended twice. Every rank must call it."""
    found: list[str | None] = [None]
    if dist.get_rank() == 0:
        since_launch: Counter[tuple[int, int, str]] = Counter()
        for record in run.read_metrics():
            if record.get("event") == LAUNCHED:
                since_launch.clear()
            if record.get("event") == ERROR:
                since_launch[record["rank"], record["step"], record["message"]] += 1
        repeated = (error for error, number in since_launch.items() if number > 1)
        found = [next((f"rank {rank} after step {step}, twice: {what}" for rank, step, what in repeated), None)]
    dist.broadcast_object_list(found, src=0)
    if found[0] is not None:
        if dist.get_rank() == 0:
            run.append_metrics({"event": FAILED, "time": time.time(), "message": found[0]})
        raise SameErrorAgain(found[0])


@contextmanager
def errors_recorded(run: RunDir, watchdog: Watchdog) -> Iterator[None]:
    """Write down what would be no other the next time."""
    try:
        yield
    except OF_THE_PROGRAM as error:
        message = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        with suppress(OSError):
            run.append_metrics(
                {
                    "event": ERROR,
                    "time": time.time(),
                    "step": watchdog.step,
                    "rank": dist.get_rank(),
                    "message": message,
                }
            )
        raise
