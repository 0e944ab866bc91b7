"""Markdown as it grows, block by block. Knows nothing of what it is made from."""

import re

_MAX_INDENT = 60  # columns; deeper lists and quotes are written without further indentation
_BACKTICKS = re.compile(r"`+")
_BLANK_LINES = re.compile(r"(?:[ \t]*\n)+")


class MarkdownWriter:
    """Markdown as it grows: before each text, the line breaks, the indentation and the list markers it owes."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.breaks = 0
        self._lead = ""  # markers of the containers opened since the last text
        self._prefixes = [""]  # what a line starts with, per open container
        self._numbers: list[int | None] = []  # per open list, the next number; None in a bullet list
        self._links: list[str] = []

    def owe(self, breaks: int) -> None:
        """Have at least this many line breaks between the last text and the next one."""
        if not self._lead:
            self.breaks = max(self.breaks, breaks)

    def prose(self, text: str) -> None:
        """Write text without the white space it has at the start of a block, and nothing if that is all it has."""
        if self.breaks or self._lead or not self.parts:
            text = text.lstrip()
        if text:
            self.write(text)

    def write(self, text: str) -> None:
        """Write text as it is, behind what is owed, its lines indented as the open containers ask."""
        prefix = self._prefixes[-1]
        if self.breaks and self.parts:
            outer = prefix[: len(prefix) - len(self._lead)]
            self.parts[-1] = self.parts[-1].rstrip()
            self.parts.append(("\n" + outer.rstrip()) * (self.breaks - 1) + "\n" + outer)
        if prefix and "\n" in text:
            first, *others = text.split("\n")
            text = "\n".join([first, *(prefix + line if line else prefix.rstrip() for line in others)])
        self.parts.append(self._lead + text)
        self.breaks, self._lead = 0, ""

    def block(self, text: str) -> None:
        """Write text as a block of its own."""
        self.owe(2)
        self.write(text)
        self.owe(2)

    def open(self, marker: str, rest: str) -> None:
        """Start a container: `marker` begins its first line and `rest`, as wide, the others."""
        if len(self._prefixes[-1]) > _MAX_INDENT:
            marker = rest = ""
        self._lead += marker
        self._prefixes.append(self._prefixes[-1] + rest)

    def open_block(self, marker: str) -> None:
        """Start a quote or a heading, by its marker; `close` ends it."""
        self.owe(2)
        self.open(marker, marker if marker == "> " else " " * len(marker))

    def close(self, breaks: int) -> None:
        """End the innermost container, `breaks` line breaks before what follows."""
        self._lead = ""
        if len(self._prefixes) > 1:
            self._prefixes.pop()
        self.owe(breaks)

    def open_list(self, start: int | None) -> None:
        """Start a list, numbered from `start`, or with bullets if that is None."""
        self.owe(1 if self._numbers else 2)
        self._numbers.append(start)

    def close_list(self) -> None:
        """End the innermost list."""
        if self._numbers:
            self._numbers.pop()
        self.owe(1 if self._numbers else 2)

    def open_item(self) -> None:
        """Start an item of the innermost list; `close` ends it."""
        marker = "- "
        if self._numbers and (number := self._numbers[-1]) is not None:
            marker, self._numbers[-1] = f"{number}. ", number + 1
        self.owe(1)
        self.open(marker, " " * len(marker))

    def open_link(self, target: str) -> None:
        """Start a link; one without a target is plain text."""
        self._links.append(target)
        if target:
            self.write("[")

    def close_link(self) -> None:
        """End the innermost link. An address that links to itself is written once."""
        target = self._links.pop() if self._links else ""
        if target and self.parts[-1] == target and self.parts[-2].endswith("["):
            self.parts[-2] = self.parts[-2][:-1]
        elif target:
            self.write(f"]({target})")

    def finish(self) -> str:
        """All that was written, without white space around it."""
        return "".join(self.parts).strip()


def code_block(code: str, language: str) -> str:
    """Fence code; blank lines around it go, indentation stays."""
    fence = "`" * max(3, _longest_run(code) + 1)
    blank = _BLANK_LINES.match(code)
    return f"{fence}{language}\n{code[blank.end() if blank else 0 :].rstrip()}\n{fence}"


def inline_code(code: str) -> str:
    """Put code between backticks, more of them than it holds itself in a row."""
    ticks = "`" * (_longest_run(code) + 1)
    padding = " " if code.startswith("`") or code.endswith("`") else ""
    return f"{ticks}{padding}{code}{padding}{ticks}" if code else ""


def table(rows: list[list[str]]) -> str:
    """Draw a table whose first row is its header."""
    header, *others = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return "\n".join([header, "| " + " | ".join(["---"] * len(rows[0])) + " |", *others])


def _longest_run(code: str) -> int:
    return max(map(len, _BACKTICKS.findall(code)), default=0)
