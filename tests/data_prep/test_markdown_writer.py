"""Blocks are set apart, containers indent their lines, and no nesting makes lines grow without end."""

import pytest

from data_prep.markdown_writer import MarkdownWriter, code_block, inline_code, table


def test_a_block_in_an_item_is_indented_and_empty_lines_are_not() -> None:
    writer = MarkdownWriter()
    writer.open_list(None)
    writer.open_item()
    writer.prose("  text ")
    writer.block(code_block("a\n\n  b", "c"))
    writer.close(1)
    writer.close_list()
    writer.prose("\n end")
    assert writer.finish() == "- text\n\n  ```c\n  a\n\n    b\n  ```\n\nend"


def test_ends_without_a_start_are_ignored() -> None:
    writer = MarkdownWriter()
    writer.close(1)
    writer.close_list()
    writer.close_link()
    writer.prose("text")
    assert writer.finish() == "text"


def test_deep_nesting_stops_indenting() -> None:
    writer = MarkdownWriter()
    for _ in range(1_000):
        writer.open_list(1)
        writer.open_item()
        writer.prose("x")
    assert max(map(len, writer.finish().split("\n"))) < 80


@pytest.mark.parametrize(("code", "expected"), [("a", "`a`"), ("a`b", "``a`b``"), ("``", "``` `` ```"), ("", "")])
def test_inline_code_takes_more_backticks_than_it_holds(code: str, expected: str) -> None:
    assert inline_code(code) == expected


def test_code_loses_blank_lines_around_it_but_no_indentation() -> None:
    assert code_block("\n  \n    a\n\tb\n\n", "") == "```\n    a\n\tb\n```"


def test_short_rows_stay_short() -> None:
    assert table([["a", "b"], ["1"]]) == "| a | b |\n| --- | --- |\n| 1 |"
