"""Messages from standard input through one library; the results and the seconds to standard output, as JSON.

python convert.py LIBRARY < messages.json
"""

import json
import sys
import time
from collections.abc import Callable


def converter(library: str) -> Callable[[str], str]:
    if library == "markdownify":
        from markdownify import markdownify

        return lambda text: markdownify(text, heading_style="ATX", escape_underscores=False, escape_asterisks=False)
    if library == "html2text":
        import html2text

        return lambda text: html2text.html2text(text, bodywidth=0)
    from html_to_markdown import convert

    return lambda text: convert(text).content or ""


def safely(convert: Callable[[str], str], text: str) -> str | None:
    try:
        return convert(text)
    except (Exception, RecursionError):
        return None


messages = json.load(sys.stdin)
convert = converter(sys.argv[1])
safely(convert, "<p>warm</p>")
started = time.perf_counter()
converted = [safely(convert, message) for message in messages]
json.dump({"seconds": time.perf_counter() - started, "converted": converted}, sys.stdout)
