"""Wall time and peak memory of a command with all the processes it starts."""

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Measured:
    """`seconds` of wall time; `peak_bytes`: proportional set size over all processes, shared memory included."""

    seconds: float
    peak_bytes: int
    output: str


def measure(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, interval_s: float = 0.5
) -> Measured:
    """Run `command` to its end, looking at its memory every `interval_s` seconds.

    Raises:
        RuntimeError: it did not end well; with what it printed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, env=env, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    peak = _Peak(process.pid, interval_s)
    output, _ = process.communicate()
    seconds = time.perf_counter() - started
    peak_bytes = peak.stop()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output}")
    return Measured(seconds, peak_bytes, output)


class _Peak:
    """Watches a process and its descendants in a thread."""

    def __init__(self, pid: int, interval_s: float) -> None:
        self._process = psutil.Process(pid)
        self._interval_s = interval_s
        self._bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(self._interval_s):
            self._bytes = max(self._bytes, self._now())

    def _now(self) -> int:
        total = 0
        try:
            family = [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        for process in family:
            try:
                total += process.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return total

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._bytes
