"""How a chat looks: plain text, Markdown, or JSON lines for a program."""

import json
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from rich.console import Console

from ray_apps.chat.markdown import LiveMarkdown
from ray_apps.chat.talker import Ending

StyleName = Literal["simple", "rich", "programmatic"]


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Style(Protocol):
    """What is shown, and when."""

    def begin(self, model: str) -> None:
        """The chat can begin."""

    def open_answer(self, model: str) -> None:
        """An answer is waited for."""

    def piece(self, text: str) -> None:
        """The next piece of the answer."""

    def close_answer(self, ending: Ending | None, stats: Mapping[str, Any]) -> None:
        """The answer is over; None: it was stopped, or broke off."""

    def notice(self, text: str) -> None:
        """Something the person should know, or asked for."""

    def error(self, text: str) -> None:
        """Something went wrong."""


def printable(text: str) -> str:
    """`text` without what a terminal would obey: control characters but line ends and tabs."""
    return _CONTROL.sub("", text)


class SimpleStyle:
    """The answer as it comes. Notices and errors go to the other stream, so that answers can be piped."""

    def __init__(self, *, names_speakers: bool) -> None:
        self._names_speakers = names_speakers

    def begin(self, model: str) -> None:
        """See `Style`."""
        if self._names_speakers:
            print(f"{model}: /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves")

    def open_answer(self, model: str) -> None:
        """See `Style`."""
        if self._names_speakers:
            print(f"{model}: ", end="", flush=True)

    def piece(self, text: str) -> None:
        """See `Style`."""
        print(printable(text), end="", flush=True)

    def close_answer(self, ending: Ending | None, stats: Mapping[str, Any]) -> None:
        """See `Style`."""
        print(flush=True)

    def notice(self, text: str) -> None:
        """See `Style`."""
        print(text, file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """See `Style`."""
        print(f"error: {text}", file=sys.stderr, flush=True)


class RichStyle:
    """Markdown with highlighted code, drawn while it comes."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live: LiveMarkdown | None = None

    def begin(self, model: str) -> None:
        """See `Style`."""
        self._say(f"{model}: /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves", "dim")

    def open_answer(self, model: str) -> None:
        """See `Style`."""
        self._say(model, "bold green")
        self._live = LiveMarkdown(self._console)

    def piece(self, text: str) -> None:
        """See `Style`."""
        if self._live is not None:
            self._live.push(printable(text))

    def close_answer(self, ending: Ending | None, stats: Mapping[str, Any]) -> None:
        """See `Style`."""
        if self._live is not None:
            self._live.finish()
            self._live = None
        self._console.print()

    def notice(self, text: str) -> None:
        """See `Style`."""
        self._say(text, "dim")

    def error(self, text: str) -> None:
        """See `Style`."""
        self._say(f"error: {text}", "red")

    def _say(self, text: str, style: str) -> None:
        self._console.print(text, style=style, markup=False, soft_wrap=True)


class ProgrammaticStyle:
    """One JSON object a line: `event` is `ready`, `open`, `piece`, `end`, `notice` or `error`."""

    def begin(self, model: str) -> None:
        """See `Style`."""
        self._tell("ready", model=model)

    def open_answer(self, model: str) -> None:
        """See `Style`."""
        self._tell("open", model=model)

    def piece(self, text: str) -> None:
        """See `Style`."""
        self._tell("piece", text=text)

    def close_answer(self, ending: Ending | None, stats: Mapping[str, Any]) -> None:
        """See `Style`."""
        self._tell("end", finish_reason=ending.finish_reason if ending else "interrupted", **stats)

    def notice(self, text: str) -> None:
        """See `Style`."""
        self._tell("notice", text=text)

    def error(self, text: str) -> None:
        """See `Style`."""
        self._tell("error", text=text)

    def _tell(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}, ensure_ascii=False), flush=True)


def build_style(name: StyleName, *, is_terminal: bool) -> Style:
    """The style called `name`; `is_terminal`: a person types."""
    if name == "programmatic":
        return ProgrammaticStyle()
    return RichStyle() if name == "rich" else SimpleStyle(names_speakers=is_terminal)
