"""A text as a sequence of words, without regard to case, marks and the width of spaces."""

import re
from collections.abc import Iterator

_TOKENS = re.compile(r"[^\W_]+")
_FIRST_CJK = "\u2e80"  # from here on, scripts are mostly written without spaces


def words(text: str) -> Iterator[str]:
    """Words in lower case; each character of a script that is written without spaces is one."""
    for token in _TOKENS.findall(text.casefold()):
        if token >= _FIRST_CJK:
            yield from token
        else:
            yield token
