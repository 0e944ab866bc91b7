"""The report says what is in the manifest, and never runs what somebody typed."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from data_prep.manifest import Counts, Manifest, SplitCounts
from data_prep.report import write_report

ATTACK = "<script>alert(1)</script> & <b>bold</b> \x00"


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.fixture
def page(tmp_path: Path) -> str:
    manifest = Manifest(
        row_schema_version=2,
        tokenizer_fingerprint="x",
        template="vicuna_v1.1",
        context_length=2048,
        counts=Counts(records=1234, read=1200, dropped={"too_long": 34}, masked={"error_message": 5}),
        histograms={
            "languages": {f"l{number}": number for number in range(1, 40)},
            "turns": {"10": 3, "2": 9},
            "tokens": {"1024": 1, "64": 2},
            "fill": {"95": 7},
        },
        train=SplitCounts(rows=7, conversations=1166, tokens=14000, trained_tokens=9000, fill=0.9765),
        eval=SplitCounts(),
        sources=[],
        config={"output": "some/dataset"},
        versions={},
    )
    sample = {
        "id": ATTACK,
        "messages": [{"role": "user", "content": ATTACK}, {"role": "assistant", "content": "fine", "weight": 0.0}],
    }
    write_report(tmp_path, manifest, [sample])
    return (tmp_path / "report.html").read_text()


def test_it_tells_the_manifest(page: str) -> None:
    for words in ("Dataset dataset", "1,234", "97.65%", "too_long", "error_message", "vicuna_v1.1", "not trained on"):
        assert words in page
    assert page.index("<td>2</td>") < page.index("<td>10</td>")  # numbers in their order
    assert page.index("<td>l39</td>") < page.index("<td>l38</td>") < page.index("<td>others</td>")


def test_it_needs_nothing_else_and_runs_nothing(page: str) -> None:
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert "b" not in parsed.tags
    assert parsed.links == []
    assert "url(" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x00" not in page
