"""Whether the inference thread still gets on."""

import time
from types import TracebackType

PATIENCE_S = 120.0
"""How long a step may take. The first of a model that is compiled takes longest, well under a minute."""


class Pulse:
    """A context for each step of a thread; others ask whether the step under way takes longer than `patience_s`."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self.patience_s = patience_s
        self._began: float | None = None

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._began = None

    @property
    def is_stuck(self) -> bool:
        """Whether a step is under way that ought to have ended."""
        began = self._began
        return began is not None and time.monotonic() - began > self.patience_s
