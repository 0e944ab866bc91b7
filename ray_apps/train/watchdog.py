"""Names a rank that hangs, and ends the process that waits for it, so that the group is restarted.

Each rank tells the others every few seconds where its training thread is. When training has made no progress for too
long, those that are silent, or are busy with something else than waiting for others, are the ones that hang. While it
gets on, a rank that hardly ever waits where all others mostly do is one that lags.
"""

import json
import logging
import os
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ray_apps.run_dir import RunDir

logger = logging.getLogger(__name__)

EXIT_CODE = 86
"""Of a process that waited too long for another."""
LAG_BEATS = 20
"""Beats of each rank that are compared to find one that lags."""
_LAGGARD_WAITS, _OTHERS_WAIT = 0.2, 0.5
_COLLECTIVES = f"{os.sep}torch{os.sep}distributed{os.sep}"


@dataclass(frozen=True)
class Beat:
    """A rank's last sign of life. `where`: what its training thread is executing; `waits`: for other ranks."""

    number: int
    step: int
    where: str
    waits: bool
    place: str


@dataclass(frozen=True)
class Seen:
    """A beat, and for how many seconds there has been no newer one."""

    beat: Beat
    age_s: float


def find_hanging(seen: Mapping[int, Seen], silent_s: float) -> dict[int, str]:
    """Ranks that keep the others waiting, and how that shows.

    A rank is silent when its last sign of life is older than `silent_s`. Where none is, those are meant that do not
    wait for others; and where none is seen to wait, as with NCCL, whose collectives return at once, those that are
    elsewhere than most.
    """
    silent = {rank: f"no sign of life for {one.age_s:.0f} s" for rank, one in seen.items() if one.age_s > silent_s}
    busy = {rank: f"stuck at {one.beat.where}" for rank, one in seen.items() if not one.beat.waits}
    if len(busy) == len(seen):
        (common, number), *_ = Counter(one.beat.where for one in seen.values()).most_common(1)
        if len(seen) / 2 < number < len(seen):
            busy = {rank: how for rank, how in busy.items() if seen[rank].beat.where != common}
    return silent or busy


def find_lagging(beats: Mapping[int, Sequence[Beat]]) -> dict[int, str]:
    """Ranks that the others wait for though training gets on, and how that shows in `LAG_BEATS` beats of each."""
    if any(len(told) < LAG_BEATS or told[0].step == told[-1].step for told in beats.values()):
        return {}
    waits = {rank: sum(beat.waits for beat in told) / len(told) for rank, told in beats.items()}
    others = [share for share in waits.values() if share >= _LAGGARD_WAITS]
    if not others or min(others) < _OTHERS_WAIT:
        return {}
    return {
        rank: f"it waits in {share:.0%} of the looks at it, the others in {min(others):.0%} or more"
        for rank, share in waits.items()
        if share < _LAGGARD_WAITS
    }


def describe_hanging(seen: Mapping[int, Seen], silent_s: float) -> str:
    """One line that names the ranks that hang, with their place and step."""
    hanging = find_hanging(seen, silent_s)
    if not hanging:
        return (
            f"all ranks wait for each other: {', '.join(f'{rank} at {one.beat.where}' for rank, one in seen.items())}"
        )
    return "; ".join(
        f"rank {rank} ({seen[rank].beat.place}) hangs after step {seen[rank].beat.step}: {how}"
        for rank, how in hanging.items()
    )


class Watchdog:
    """Watches this rank's training thread, the one that made it, from a thread of its own."""

    def __init__(self, run: RunDir, timeout_s: float, *, end: Callable[[int], Any] = os._exit) -> None:
        self._run = run
        self._timeout_s = timeout_s
        self._interval_s = min(5.0, timeout_s / 16)  # silence shows before a lag is told
        self._end = end
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._watched = threading.get_ident()
        self._silent_s = 3 * self._interval_s
        self.step = 0
        self._progressed_at = self._exchanged_at = time.monotonic()
        self._seen: dict[int, tuple[Beat, float]] = {}
        self._told: dict[int, deque[Beat]] = {rank: deque(maxlen=LAG_BEATS) for rank in range(self._world_size)}
        self._lagging: dict[int, str] = {}
        self._warned_at = 0.0
        self._stopped = threading.Event()
        self._store = _shared_store(self._rank, self._world_size)
        self._threads = [
            threading.Thread(target=work, name="watchdog", daemon=True) for work in (self._watch, self._exchange)
        ]
        for thread in self._threads:
            thread.start()

    def progress(self, step: int) -> None:
        """Training has come so far."""
        self.step, self._progressed_at = step, time.monotonic()

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *error: object) -> None:
        """Stop watching."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(self._silent_s)

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_s):
            since = self._progressed_at
            still_s = time.monotonic() - since
            if still_s > self._timeout_s:
                self._give_up(still_s)
            elif still_s > self._timeout_s / 4 and self._world_size > 1 and self._warned_at != since:
                self._warned_at = since
                self._record("lag", self._describe(), self._hanging())

    def _describe(self) -> str:
        if time.monotonic() - self._exchanged_at > self._silent_s:
            return "rank 0 hangs: it does not answer"
        return describe_hanging(self._ages(), self._silent_s)

    def _exchange(self) -> None:
        """Tell where this rank is, and see where the others are. Blocks while rank 0, the store's, is frozen."""
        number = 0
        while not self._stopped.wait(self._interval_s):
            number += 1
            beat = Beat(number, self.step, *_position(sys._current_frames().get(self._watched)), _place())
            try:
                self._store.set(f"rank-{self._rank}", json.dumps(asdict(beat)))
                for rank in range(self._world_size):
                    self._look_at(rank)
            except (RuntimeError, dist.DistError):
                continue
            self._exchanged_at = time.monotonic()
            self._tell_who_lags()

    def _tell_who_lags(self) -> None:
        """Once, until others do, or none does for as long."""
        if any(len(told) < LAG_BEATS for told in self._told.values()):
            return
        lagging = find_lagging(self._told)
        if lagging and lagging.keys() != self._lagging.keys():
            lines = (f"rank {rank} ({self._told[rank][-1].place}) lags: {how}" for rank, how in lagging.items())
            self._record("lag", "; ".join(lines), lagging)
        self._lagging = lagging
        for told in self._told.values():
            told.clear()

    def _look_at(self, rank: int) -> None:
        if not self._store.check([f"rank-{rank}"]):
            return
        beat = Beat(**json.loads(self._store.get(f"rank-{rank}")))
        if rank not in self._seen or self._seen[rank][0].number != beat.number:
            self._seen[rank] = (beat, time.monotonic())
            self._told[rank].append(beat)

    def _ages(self) -> dict[int, Seen]:
        return {rank: Seen(beat, time.monotonic() - since) for rank, (beat, since) in sorted(self._seen.items())}

    def _hanging(self) -> Collection[int]:
        return find_hanging(self._ages(), self._silent_s)

    def _record(self, name: str, message: str, hanging: Collection[int]) -> None:
        """The lowest rank that does not hang writes it down, if it can within a while: its disk may be what hangs."""
        logger.warning("%s: %s", name, message)
        able = [rank for rank in range(self._world_size) if rank not in hanging and f"rank {rank} hangs" not in message]
        if self._rank == min(able, default=self._rank):
            record = {"event": name, "time": time.time(), "step": self.step, "message": message}
            writing = threading.Thread(target=self._write, args=(record,), daemon=True)
            writing.start()
            writing.join(self._silent_s)

    def _write(self, record: dict[str, Any]) -> None:
        try:
            self._run.append_metrics(record)
        except OSError as error:
            logger.warning("%s: the metrics cannot be written: %s", self._run.folder, error)

    def _give_up(self, still_s: float) -> None:
        told = f"no progress for {still_s:.0f} s after step {self.step}: {self._describe()}"
        self._record("hang", told, self._hanging())
        if not self._stopped.wait(2 * self._interval_s):  # let the rank that writes it down do so
            self._end(EXIT_CODE)


def _place() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _position(frame: FrameType | None) -> tuple[str, bool]:
    """Where a thread is, in the innermost of our functions or of the caller's, and whether it waits for other ranks."""
    if frame is None:
        return "its end", False
    where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
    outer: FrameType | None = frame
    while outer is not None:
        if _COLLECTIVES in outer.f_code.co_filename:
            return where, True
        outer = outer.f_back
    return where, False


def _shared_store(rank: int, world_size: int) -> TCPStore:
    """A store that all ranks reach, held by rank 0. Every rank must call it."""
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    held = TCPStore(host, 0, world_size, True, wait_for_workers=False) if rank == 0 else None
    port = [held.port if held else 0]
    dist.broadcast_object_list(port, src=0)
    return held or TCPStore(host, port[0], world_size, False, wait_for_workers=False)
