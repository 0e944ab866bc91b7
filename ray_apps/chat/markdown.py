"""Markdown that is shown while it is being written."""

import re

from markdown_it import MarkdownIt
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown

_PARSER = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")
_ITEM = re.compile(r"^ {0,3}(?:[-*+]|\d{1,9}[.)])\s", re.MULTILINE)
FENCE = re.compile(r"^ {0,3}(```+|~~~+)(.*)$")


class LiveMarkdown:
    """What is whole, up to the last empty line outside of code, is printed for good; the rest is drawn as it grows.

    Of a rest that is higher than the screen only the end is drawn. `finish` prints all of it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""
        self._live = Live(console=console, refresh_per_second=8, transient=True, vertical_overflow="crop")
        self._live.start()

    def push(self, text: str) -> None:
        """Take the next piece of the text."""
        self._text += text
        end = whole_blocks(self._text)
        if end:
            self._live.update(Group(), refresh=True)  # or what is drawn scrolls away below what is printed
            self._console.print(_drawn(self._text[:end]))
            self._console.print()
            self._text = self._text[end:]
        self._live.update(self._tail())

    def finish(self) -> None:
        """Print the rest."""
        self._live.update(Group(), refresh=True)
        self._live.stop()
        if self._text.strip():
            self._console.print(_drawn(self._text))
        self._text = ""

    def _tail(self) -> RenderableType:
        lines = self._text.splitlines()
        shown = max(3, self._console.height - 4)
        if len(lines) <= shown:
            return _drawn(self._text)
        fence = open_fence("\n".join(lines[:-shown]))
        return _drawn("\n".join([*([fence] if fence else []), *lines[-shown:]]))


def _drawn(text: str) -> Markdown:
    """As Markdown, in which HTML is text: otherwise it would not be shown."""
    drawn = Markdown(text)
    drawn.parsed = _PARSER.parse(text)
    return drawn


def whole_blocks(text: str) -> int:
    """Where the last empty line outside of a block of code ends, in characters; 0 if there is none.

    What follows a list may go on with its last item: there it must be seen that it does not, by its first character.
    """
    end = at = after_list = 0
    fence: str | None = None
    for line in text.splitlines(keepends=True):
        if fence is None and after_list and line.strip():
            end = end if line[0].isspace() or _ITEM.match(line) else after_list
            after_list = 0
        fence = _after(line, fence)
        at += len(line)
        if fence is None and not line.strip() and line.endswith("\n") and text[:at].strip():
            if _ITEM.search(text[end:at]):
                after_list = at
            else:
                end = at
    return end


def open_fence(text: str) -> str | None:
    """The line that opened a block of code which `text` does not close."""
    fence: str | None = None
    for line in text.splitlines():
        fence = _after(line, fence)
    return fence


def _after(line: str, fence: str | None) -> str | None:
    """The line of the fence that is open after `line`, with `fence` open before it."""
    match = FENCE.match(line.rstrip("\n"))
    if match is None:
        return fence
    if fence is None:
        return line.rstrip("\n")
    opened = FENCE.match(fence)
    closes = opened is not None and match[1].startswith(opened[1]) and not match[2].strip()
    return None if closes else fence
