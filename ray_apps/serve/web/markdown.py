"""What a model says, as Markdown that shows it and does nothing else."""

import re

_CODE = re.compile(r"(^ {0,3}(```+|~~~+).*?(?:^ {0,3}\2|\Z)|(`+)(?!`).+?(?<!`)\3(?!`))", re.DOTALL | re.MULTILINE)


def harmless(text: str) -> str:
    """`text` with HTML shown instead of taken for such, and images as links: nothing is fetched from anywhere.

    Blocks and spans of code stay as they are; Markdown shows them as they are written.
    """
    return "".join(_escaped(piece) if number % 4 == 0 else piece for number, piece in _pieces(text))


def _pieces(text: str) -> list[tuple[int, str]]:
    """Text at places 0, 4, 8 …, code at 1, 5, 9 …; what the groups within code match is left out."""
    return [(number, piece) for number, piece in enumerate(_CODE.split(text)) if piece and number % 4 in (0, 1)]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("![", "\\![")
