"""Where a person's words come from: a terminal, or a pipe."""

from pathlib import Path
from typing import TextIO


class Keyboard:
    """A terminal. What was typed comes back with the arrows; wide characters and input methods work.

    Args:
        history: the file in which it is kept; None keeps it for this chat only.
        is_multiline: Enter begins a line, Escape and then Enter sends.
    """

    def __init__(self, prompt: str, history: Path | None, *, is_multiline: bool) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory

        if history is not None:
            history.parent.mkdir(parents=True, exist_ok=True)
        kept = None if history is None else FileHistory(str(history))
        self._prompt = prompt
        self._session: PromptSession[str] = PromptSession(history=kept, multiline=is_multiline)

    def read(self, *, edited: str = "") -> str | None:
        """See `Reader`. Ctrl-C gives up what was typed."""
        try:
            return self._session.prompt(self._prompt, default=edited)
        except KeyboardInterrupt:
            return ""
        except EOFError:
            return None


class Pipe:
    """Each line is a message; or with `is_multiline` all there is."""

    def __init__(self, stream: TextIO, *, is_multiline: bool) -> None:
        self._stream = stream
        self._is_multiline = is_multiline

    def read(self, *, edited: str = "") -> str | None:
        """See `Reader`."""
        text = self._stream.read() if self._is_multiline else self._stream.readline()
        return text.removesuffix("\n") if text else None
