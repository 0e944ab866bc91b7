"""An error that would come again ends the run, and does not restart it as often as failures may."""

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist

from data_prep.errors import ModelError
from ray_apps.run_dir import RunDir
from ray_apps.train.errors import SameErrorAgain, WouldFailAgain
from ray_apps.train.metrics import ERROR, FAILED, LAUNCHED
from ray_apps.train.watchdog import Watchdog

logger = logging.getLogger(__name__)

_NO_HOST_MEMORY = "DefaultCPUAllocator"


def is_of_the_program(error: Exception) -> bool:
    """Whether `error` comes from what is computed, and not from a disk, a connection or another rank's death.

    PyTorch says RuntimeError for both; of those only a lack of memory counts. A base that a worker cannot fetch was
    there when the command began.
    """
    if isinstance(error, torch.OutOfMemoryError) or _NO_HOST_MEMORY in str(error):
        return True
    return not isinstance(error, OSError | RuntimeError | ModelError) and not type(error).__module__.startswith("ray.")


def refuse_to_repeat(run: RunDir) -> None:
    """End a run that the same error has ended twice since its command was given. Every rank must call it."""
    found = [_repeated(run) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    if found[0] is None:
        return
    if dist.get_rank() == 0:
        _record(run, event=FAILED, message=found[0])
    raise SameErrorAgain(found[0])


def _repeated(run: RunDir) -> str | None:
    """The first error that came twice since the command was given."""
    try:
        records = run.read_metrics()
    except OSError as error:
        logger.warning("%s: the metrics cannot be read: %s", run.folder, error)
        return None
    launches = [number for number, record in enumerate(records) if record.get("event") == LAUNCHED]
    seen: set[tuple[Any, ...]] = set()
    for record in records[launches[-1] if launches else 0 :]:
        if record.get("event") == ERROR:
            # Of the message, without numbers: how much memory was free, or an address, is another each time.
            kind = (record["rank"], record["step"], re.sub(r"\d+(\.\d+)?", "", record["message"]))
            if kind in seen:
                return f"rank {record['rank']} after step {record['step']}, twice: {record['message']}"
            seen.add(kind)
    return None


@contextmanager
def errors_recorded(run: RunDir, watchdog: Watchdog) -> Iterator[None]:
    """Write down what would be no other the next time, and is not yet the run's last event."""
    try:
        yield
    except WouldFailAgain:
        raise
    except Exception as error:
        if is_of_the_program(error):
            message = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            _record(run, event=ERROR, step=watchdog.step, rank=dist.get_rank(), message=message)
        raise


def _record(run: RunDir, **values: Any) -> None:
    with suppress(OSError):  # the error itself is what is told
        run.append_metrics({**values, "time": time.time()})
