"""What is said in a chat, as Markdown that shows it and does nothing else."""

import re

from markdown_it import MarkdownIt

_PARSER = MarkdownIt("commonmark", {"html": False})
_NOTHING = "\N{ZERO WIDTH SPACE}"
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_ENTITY = re.compile(r"&(?=#?\w+;)")
_IMAGE = re.compile(r"!(?=\[)")


def harmless(text: str) -> str:
    """`text` with HTML shown instead of taken for such, and images as links: nothing is fetched from anywhere.

    Signs that would begin a tag, an entity or an image are followed by a space of no width. Fenced blocks of code stay
    as they are, so that they can be copied; Markdown shows them so. `plain` undoes it.
    """
    lines = text.split("\n")
    fenced = {
        number
        for token in _PARSER.parse(text)
        if token.type == "fence" and token.map
        for number in range(token.map[0] + 1, token.map[1])
    }
    return "\n".join(line if number in fenced else _shown(line) for number, line in enumerate(lines))


def plain(shown: str) -> str:
    """The text of which `shown` is the harmless form."""
    return re.sub(f"(?<=[<&!]){_NOTHING}", "", shown)


def _shown(line: str) -> str:
    for sign in (_TAG, _ENTITY, _IMAGE):
        line = sign.sub(lambda found: found[0] + _NOTHING, line)
    return line
