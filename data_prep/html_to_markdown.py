"""Raw ShareGPT HTML to Markdown. Knows nothing of conversations beyond who speaks.

The dumps of 2023 hold answers as the HTML of the chat page: prose, code blocks with a header and a copy button, and
furniture such as "2 / 3" pagers. What a person typed is text and may itself contain HTML, which stays as it is.

One pass over the tags, without recursion and without a tree: any depth of nesting is safe and time grows with length
alone. Each pattern stops at the next `<`, so malformed markup costs no more than good markup.
"""

import html
import re
from collections.abc import Iterator

from data_prep.conversation import Role
from data_prep.markdown_writer import MarkdownWriter, code_block, inline_code, table

_TAG = re.compile(r"""<!--[^<>]*-->|<(/?)([a-zA-Z][a-zA-Z0-9:-]*)((?:[^<>"']|"[^"<]*+"|'[^'<]*+')*+)>""")
_PAGER = r"(?:\d+ / \d+|Copy ?\d+ chars / \d+ words)"
_PAGERS = re.compile(rf"\s*(?:{_PAGER}\s*)++")
_ANSWER_START = re.compile(rf"\s*(?:{_PAGER}\s*)*+<(?:div|p|pre|[ou]l|table|h[1-6]|blockquote)(?:\s[^<>]*)?>")
_ANSWER_END = re.compile(rf">\s*(?:{_PAGER}\s*)*+\Z")
_PAGE = re.compile(r'<div class="[^"<>]*\bmarkdown prose\b|<code class="!whitespace-pre')
_TYPED = re.compile(r"\s*<(?:p|pre)>.*</(?:p|pre)>\s*", re.DOTALL)
_ESCAPED = re.compile(r"(?:[^&<>`]++|&(?:amp|lt|gt|nbsp);)*+")
_LANGUAGE = re.compile(r"\blang(?:uage)?-([^\s\"'<>`]+)")
_LABEL = re.compile(r"([\w+#./-]*?(?: [\w+#./-]+?)?)(?:\s*copy(?: code)?)?", re.IGNORECASE)
_MATH = re.compile(r"\b(?:math-(?:inline|display)|katex)\b")
_DISPLAY = re.compile(r'(?:math|katex)-display|display="block"')
_MARKS = {"strong": "**", "b": "**", "em": "*", "i": "*", "del": "~~", "s": "~~"}
_BREAKS = {"p": 2, "div": 1, "dl": 2, "dt": 1, "dd": 1}
_CONTAINERS = {f"h{level}": "#" * level + " " for level in range(1, 7)} | {"blockquote": "> "}
_OPAQUE = {"button", "svg", "script", "style"}
_PROSE = {"p", "li", "td", "th", "a", *_CONTAINERS, *_MARKS}


def html_to_markdown(text: str, role: Role = Role.ASSISTANT) -> str:
    """Turn one message of a raw dump into Markdown; text that is not the page's markup is returned as it is.

    An answer is markup if it begins with a block tag and ends with a tag, pagers aside, or holds the page's wrapper.
    Any other message is, if it is wrapped in a bare `<p>` or `<pre>` and holds no tags but those, `<code>` and `<br>`.
    An answer without tags and backticks in which every `&` begins an entity is text the page escaped: it is unescaped.
    """
    if "<" not in text and "&" not in text:
        return text
    if _is_markup(text, role):
        return _Converter(text).convert()
    return html.unescape(text) if role is Role.ASSISTANT and _ESCAPED.fullmatch(text) else text


def _is_markup(text: str, role: Role) -> bool:
    if role is Role.ASSISTANT:
        return bool((_ANSWER_START.match(text) and _ANSWER_END.search(text[-200:])) or _PAGE.search(text))
    return bool(_TYPED.fullmatch(text)) and all(tag[2] in ("p", "pre", "code", "br") for tag in _TAG.finditer(text))


def _events(text: str) -> Iterator[tuple[str, str, bool, str]]:
    """Yield the text before each tag, the tag's name, whether it closes, its attributes; last what text is left."""
    position = 0
    for tag in _TAG.finditer(text):
        yield text[position : tag.start()], (tag[2] or "").lower(), tag[1] == "/", tag[3] or ""
        position = tag.end()
    yield text[position:], "", False, ""


def _attribute(attributes: str, name: str) -> str:
    found = re.search(rf"""(?<![\w-]){name}=("[^"]*"|'[^']*')""", attributes)
    return html.unescape(found[1][1:-1]) if found else ""


class _Converter:
    """One conversion: the tags still to come, the writer that takes the text, and the table that is open."""

    def __init__(self, text: str) -> None:
        self.events = _events(text.replace("<!-- -->", ""))
        self.writer = self.page = MarkdownWriter()  # inside a table cell, `writer` is the cell's own
        self.rows: list[list[str]] = [[]]
        self.prose_depth, self.table_depth, self.formula_end = 0, 0, -1

    def convert(self) -> str:
        for text, name, closing, attributes in self.events:
            if text and (self.prose_depth > 0 or not _PAGERS.fullmatch(text)):
                self.writer.prose(html.unescape(text))
            self._tag(name, closing, attributes)
        self._end_table()
        return self.page.finish()

    def _tag(self, name: str, closing: bool, attributes: str) -> None:
        if name in _PROSE:
            self.prose_depth += -1 if closing else 1
        if name in _MARKS:
            self.writer.write(_MARKS[name])
        elif name in _CONTAINERS:
            self.writer.close(2) if closing else self.writer.open_block(_CONTAINERS[name])
        elif name in ("ul", "ol", "li"):
            self._list(name, closing, attributes)
        elif name in ("table", "tr", "td", "th"):
            self._table(name, closing)
        elif name == "a":
            self.writer.close_link() if closing else self.writer.open_link(_attribute(attributes, "href"))
        elif name in _BREAKS and not _MATH.search(attributes):
            self.writer.owe(_BREAKS[name])
        elif not closing:
            self._element(name, attributes)

    def _list(self, name: str, closing: bool, attributes: str) -> None:
        if name == "li":
            self.writer.close(1) if closing else self.writer.open_item()
        elif closing:
            self.writer.close_list()
        else:
            start = re.search(r"\bstart=\D?(\d{1,9})", attributes)
            self.writer.open_list(None if name == "ul" else int(start[1]) if start else 1)

    def _table(self, name: str, closing: bool) -> None:
        if name == "table":
            self.table_depth = max(0, self.table_depth + (-1 if closing else 1))
        if self.table_depth > 1 or (name != "table" and not self.table_depth):
            self.writer.owe(1)  # a table in a table is read as text
        elif name == "table":
            self._end_table()
        else:
            self._end_cell()
            if name == "tr" and not closing:
                self.rows.append([])
            elif not closing:
                self.writer = MarkdownWriter()

    def _end_cell(self) -> None:
        if self.writer is not self.page:
            self.rows[-1].append(" ".join(self.writer.finish().split()))
            self.writer = self.page

    def _end_table(self) -> None:
        self._end_cell()
        if any(self.rows):
            self.writer.block(table([row for row in self.rows if row]))
        self.rows = [[]]

    def _element(self, name: str, attributes: str) -> None:
        """Take an element that is read as a whole or has no content."""
        if name in _OPAQUE:
            self._content(name, attributes)
        elif name == "pre":
            self._pre()
        elif name == "code":
            self.writer.write(inline_code("".join(self._content(name, attributes)["text"])))
        elif name == "math" or _MATH.search(attributes):
            self._formula(name, attributes)
        elif name == "br":
            self.writer.owe(self.writer.breaks + 1)
        elif name == "hr":
            self.writer.block("---")
        elif name == "img":
            self.writer.write(f"![{_attribute(attributes, 'alt')}]({_attribute(attributes, 'src')})")

    def _content(self, name: str, attributes: str) -> dict[str, list[str]]:
        """Read on to the end of the open element; return its text, with that of MathML and its TeX annotation apart."""
        found: dict[str, list[str]] = {"text": [], "math": [], "annotation": []}
        kind, depth = ("math" if name == "math" else "text"), int(not attributes.endswith("/"))
        while depth and (event := next(self.events, None)):
            text, inner, closing, attributes = event
            found[kind].append(html.unescape(text))
            if inner in ("math", "annotation"):
                kind = inner if not closing else "text" if inner == "math" else "math"
            if inner == name and not attributes.endswith("/"):
                depth += -1 if closing else 1
        return found

    def _formula(self, name: str, attributes: str) -> None:
        found = self._content(name, attributes)
        tex = "".join(found["annotation"]).strip() or "".join(found["text"]).strip() or "".join(found["math"]).strip()
        if not tex or (name == "math" and self.formula_end == len(self.writer.parts)):
            return  # empty, or the MathML twin of the formula just written
        self.writer.block(f"$$\n{tex}\n$$") if _DISPLAY.search(attributes) else self.writer.write(f"${tex}$")
        self.formula_end = len(self.writer.parts)

    def _pre(self) -> None:
        code: list[str] = []
        language = None  # not known before the block's header, the text before <code>, is read
        for text, name, closing, attributes in self.events:
            code.append(html.unescape(text) + "\n" * (name == "br"))
            if name == "pre" and closing:
                break
            if name in _OPAQUE and not closing:
                self._content(name, attributes)
            elif name == "code" and not closing and language is None:
                label = _LABEL.fullmatch("".join(code).strip())
                language = _language(attributes, label[1] if label else "")
                code = [] if label else code
        if self.writer is not self.page:
            self.writer.write(inline_code("".join(code).strip()))
        elif any(map(str.strip, code)):
            self.writer.block(code_block("".join(code), language or ""))


def _language(attributes: str, label: str) -> str:
    """A code block's language: what its class says, else its label; of a file's name, the ending."""
    found = _LANGUAGE.search(attributes)
    return found[1] if found else label.rpartition(".")[2].replace(" ", "-").lower()
