"""Which failures are not the run's fault: those beside a machine of which there was notice that it is taken away."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType

logger = logging.getLogger(__name__)

LOOK_S = 1.0
TOLD_LATE_S = 60.0
"""Seconds within which the death of a worker is told after its machine, by then gone, was last seen."""


class Preemptions:
    """Looks while the block runs, from a thread, which machines of workers are about to be taken away.

    The workers themselves look between two steps only, and so not at all while they load, restore or evaluate, or where
    the machine is gone within a step.

    `find_leaving`: their names at this moment.
    """

    def __init__(self, find_leaving: Callable[[], Iterable[str]]) -> None:
        self._find_leaving = find_leaving
        self._seen_at: dict[str, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch-preemptions", daemon=True)

    def __enter__(self) -> "Preemptions":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(2 * LOOK_S)

    def _watch(self) -> None:
        while not self._done.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """See who is leaving. A cluster that does not answer says nothing."""
        try:
            leaving = list(self._find_leaving())
        except Exception as error:  # whatever Ray raises where its head is out of reach
            logger.warning("the cluster does not say which machines it loses: %s", error)
            return
        self._seen_at.update(dict.fromkeys(leaving, time.monotonic()))

    def recent(self) -> list[str]:
        """Machines that are leaving, or were when they were last seen a short while ago."""
        now = time.monotonic()
        return sorted(name for name, seen_at in list(self._seen_at.items()) if now - seen_at <= TOLD_LATE_S)
