"""Where a person's words come from: a terminal, or a pipe."""

from pathlib import Path
from typing import TextIO

from data_prep.storage import cache_directory


class Keyboard:
    """A terminal. Lines are kept, and come back with the arrows; wide characters and input methods work.

    `is_multiline`: Enter begins a line, Escape and then Enter sends.
    """

    def __init__(self, prompt: str, *, is_multiline: bool, history: Path | None = None) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory

        path = history or cache_directory().parent / "chat_history"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._prompt = prompt
        self._session: PromptSession[str] = PromptSession(history=FileHistory(str(path)), multiline=is_multiline)

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
