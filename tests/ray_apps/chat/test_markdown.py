"""Markdown that grows is printed once and whole, however it is cut into pieces."""

import io
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.markdown import Markdown

from ray_apps.chat.markdown import LiveMarkdown, open_fence, whole_blocks

TEXT = "# Title\n\none\ntwo\n\n```python\nx = 1\n\n\ny = '你好'\n```\n\n- a\n- b\n\nend **bold**"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("one\n\ntw", "one\n\n"),
        ("one\ntwo", ""),
        ("\n\n", ""),
        ("```\na\n\nb", ""),
        ("```\na\n\n```\n\n", "```\na\n\n```\n\n"),
        ("````\n```\n\n````\n\nx", "````\n```\n\n````\n\n"),
        ("one\n\n```\ncode\n\n", "one\n\n"),
        ("1. one:\n\n", ""),
        ("1. one:\n\n    more", ""),
        ("1. one:\n\n2. two", ""),
        ("- one\n\nthen", "- one\n\n"),
    ],
)
def test_what_is_whole(text: str, whole: str) -> None:
    assert text[: whole_blocks(text)] == whole


def test_code_that_is_cut_stays_code() -> None:
    assert open_fence("a\n```python\nx") == "```python"
    assert open_fence("```\nx\n```\n") is None


def printed(pieces: list[str], height: int = 20) -> str:
    file = io.StringIO()
    console = Console(file=file, width=60, height=height)
    live = LiveMarkdown(console)
    for piece in pieces:
        live.push(piece)
    live.finish()
    return file.getvalue()


@given(cuts=st.lists(st.integers(0, len(TEXT)), max_size=8), height=st.integers(5, 30))
def test_every_word_is_printed_once(cuts: list[int], height: int) -> None:
    places = sorted({0, len(TEXT), *cuts})
    pieces = [TEXT[start:end] for start, end in pairwise(places)]
    shown = printed(pieces, height)
    for word in ("Title", "one two", "x = 1", "y = '你好'", "• a", "end bold"):
        assert shown.count(word) == 1, shown


def test_it_looks_as_if_it_had_come_at_once() -> None:
    file = io.StringIO()
    Console(file=file, width=60).print(Markdown(TEXT))
    assert printed(list(TEXT)).split() == file.getvalue().split()


def test_html_is_text() -> None:
    shown = printed(["Use <p>paragraph</p> or <br>.\n\n<details>secret</details>\n"])
    assert "<p>paragraph</p> or <br>" in shown
    assert "<details>secret</details>" in shown


def test_a_list_item_is_not_cut_at_an_empty_line() -> None:
    assert "**" not in printed(["1. Step one:\n\n", "    then **more** text\n\nend"])
