"""A real terminal: a pseudo-terminal, and what a screen would show of what is written to it."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte

ROOT = Path(__file__).parents[3]


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *words: str, home: Path, columns: int = 80, lines: int = 24) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        self._stream = pyte.Stream(self.screen)
        environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "XDG_CACHE_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": str(columns),
            "LINES": str(lines),
        }
        self.process = pexpect.spawn(
            sys.executable,
            ["-m", "ray_apps.cli", "chat", *words],
            env=environment,
            dimensions=(lines, columns),
            encoding="utf-8",
            cwd=str(home),
        )

    @property
    def text(self) -> str:
        """All that has been on the screen, scrolled away or not."""
        gone = ["".join(line[column].data for column in range(self.screen.columns)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*gone, *self.screen.display])

    def type(self, keys: str) -> None:
        """Press keys."""
        self.process.send(keys)

    def wait_for(self, what: str | Callable[[], bool], seconds: float = 30) -> None:
        """Read what is written until a text is on the screen, or something holds."""
        deadline = time.monotonic() + seconds
        while not (what in self.text if isinstance(what, str) else what()):
            assert time.monotonic() < deadline, f"{what!r} is not on the screen:\n{self.text}"
            try:
                written = self.process.read_nonblocking(65536, timeout=0.1)
            except (pexpect.TIMEOUT, pexpect.EOF):
                continue
            self._stream.feed(written)
            if "\x1b[6n" in written:  # prompt_toolkit asks where the cursor is, and a terminal answers
                self.process.send(f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R")

    def end(self) -> int:
        """Read to the end; the exit code."""
        self.wait_for(lambda: not self.process.isalive())
        self.process.close()
        return int(self.process.exitstatus if self.process.exitstatus is not None else -1)
