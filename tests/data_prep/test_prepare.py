"""Every record of a group is in a row or a counted drop."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import DataConfig
from data_prep.pack import table_to_rows
from data_prep.prepare import GroupResult, prepare_group, write_group
from tests import tiny

ROUND = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]
TOKENIZER = tiny.byte_level()


def config(**fields: Any) -> DataConfig:
    values = {"output": "x", "tokenizer": "x", "sources": ["chats.json"], "template": "chatml", "context_length": 128}
    return DataConfig.parse({**values, **fields})


def prepared(*records: Any, **fields: Any) -> GroupResult:
    return prepare_group(records, config(**fields), TOKENIZER)


def kept(result: GroupResult) -> list[str]:
    return [name for rows in result.rows.values() for row in rows for name in row.document_ids]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "unreadable"),
        ({"conversations": ROUND}, "missing_id"),
        ({"id": "a", "conversations": []}, "no_messages"),
        ({"id": "a", "conversations": ROUND[:1]}, "no_answer"),
        ({"id": "a", "conversations": ROUND[1:]}, "roles_not_alternating"),
        ({"id": "a", "conversations": [{"from": "martian", "value": "x"}]}, "unknown_role"),
        ({"id": "a", "conversations": [ROUND[0], {"from": "gpt", "value": "long " * 500}]}, "too_long"),
    ],
)
def test_a_record_that_cannot_be_trained_on_is_counted_by_its_reason(record: Any, reason: str) -> None:
    result = prepared(record, {"id": "good", "conversations": ROUND})
    assert dict(result.dropped) == {reason: 1}
    assert (result.records, kept(result)) == (2, ["good"])


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 60)), max_size=12), st.booleans())
def test_nothing_is_lost_and_nothing_is_twice(shapes: list[tuple[int, int]], pack: bool) -> None:
    records = [
        {"id": f"{number}", "conversations": [ROUND[0], {"from": "gpt", "value": "long " * words}] * rounds}
        for number, (rounds, words) in enumerate(shapes)
    ]
    result = prepared(*records, pack=pack, eval_fraction=0.3)
    names = kept(result)
    assert len(set(names)) == len(names)
    assert len(names) + result.dropped.total() == len(records) + result.split_parts
    assert all(len(row.input_ids) <= 128 for rows in result.rows.values() for row in rows)


def test_page_html_is_converted_in_sharegpt_records_alone() -> None:
    markup = '<div class="markdown prose"><p>one <strong>two</strong></p></div>'
    sharegpt = prepared({"id": "a", "conversations": [ROUND[0], {"from": "gpt", "value": markup}]})
    assert "one **two**" in TOKENIZER.decode(sharegpt.rows["train"][0].input_ids)
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": markup}]
    openai = prepared({"id": "a", "messages": messages})
    assert markup in TOKENIZER.decode(openai.rows["train"][0].input_ids)


def test_the_parts_of_a_chat_stay_on_one_side() -> None:
    long = {"from": "gpt", "value": "long " * 12}
    records = [{"id": f"{number}", "conversations": [ROUND[0], long] * 6} for number in range(12)]
    result = prepared(*records, eval_fraction=0.5)
    sides = [{name.split("_")[0] for row in rows for name in row.document_ids} for rows in result.rows.values()]
    assert result.split_parts > 0
    assert all(sides)
    assert not sides[0] & sides[1]


def test_characters_without_tokens_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = tiny.byte_level(lacks=b"\xf3")
    flag = {"from": "gpt", "value": "England: 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"}
    records = [{"id": "a", "conversations": [ROUND[0], flag]}, {"id": "b", "conversations": ROUND}]
    assert prepare_group(records, config(), lacking).with_lost_bytes == 1
    assert prepare_group(records, config(), TOKENIZER).with_lost_bytes == 0


def test_a_group_is_written_to_part_files_of_its_own(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    records = [{"id": "a", "conversations": ROUND}, None]
    counts = write_group("0001-00002", records, config(tokenizer=str(tiny_model_dir)), tmp_path)
    (row,) = table_to_rows(pq.read_table(tmp_path / "train" / "part-0001-00002.parquet"))
    assert counts["records"] == 2
    assert counts["dropped"] == {"unreadable": 1}
    assert counts["train"] == {
        "rows": 1,
        "conversations": 1,
        "tokens": len(row.input_ids),
        "trained_tokens": (row.weights > 0).sum(),
    }
    assert counts["eval"]["rows"] == 0
