"""What is kept of a group comes back as it was, and only for the same job."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.config import DataConfig
from data_prep.moderation import NoModerator
from data_prep.prepare import Chunk, Item, Preparation, Prepared
from data_prep.tokenizer import describe, encoders_of
from data_prep.work import WorkDir
from tests import tiny


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    values = {"output": "x", "tokenizer": "x", "sources": ["chats.json"], "template": "chatml", "context_length": 128}
    config = DataConfig.parse({**values, "dedup": {"near": 0.8}})
    items = [Item(position, record) for position, record in enumerate(tiny.chats(20))]
    return Preparation(config, encoders_of(tiny.byte_level()), NoModerator()).prepare(
        Chunk(3, "chats.json", [*items, Item(20, None, "line 21: not JSON")])
    )


def test_a_group_comes_back_as_it_was(prepared: Prepared, tmp_path: Path) -> None:
    work = WorkDir.of(tmp_path / "dataset")
    work.open({"a": 1}, "{}")
    assert not work.is_done("0003-000000")
    work.write("0003-000000", prepared)
    assert work.is_done("0003-000000")
    assert work.names() == ["0003-000000"]

    chats = work.read_chats("0003-000000")
    assert len(chats) == len(prepared.chats) == 20
    for chat, expected in zip(chats, prepared.chats, strict=True):
        assert (chat.position, chat.held_out, chat.copies) == (expected.position, expected.held_out, expected.copies)
        document, wanted = chat.document, expected.document
        assert (document.id, document.source, document.part) == (wanted.id, wanted.source, wanted.part)
        assert np.array_equal(document.tokens.input_ids, wanted.tokens.input_ids)
        assert np.array_equal(document.tokens.weights, wanted.tokens.weights)
    assert work.num_keys("0003-000000") == 20
    keys = work.read_keys("0003-000000").to_pylist()
    assert [tuple(key.values()) for key in keys] == [tuple(key) for key in prepared.keys]
    (reject,) = work.read_rejects("0003-000000").to_pylist()
    assert tuple(reject.values()) == tuple(prepared.rejects[0])
    assert work.read_done("0003-000000") == (prepared.counts, prepared.samples)


def test_tasks_find_the_tokenizer(tmp_path: Path) -> None:
    work, tokenizer = WorkDir.of(tmp_path / "dataset"), tiny.byte_level()
    work.open({}, describe(tokenizer))
    for spelling, special in work.encoders().specials.items():
        assert special.id == tokenizer.convert_tokens_to_ids(spelling)
    assert work.encoders().for_templates.eos == tokenizer.eos_token


def test_a_group_without_chats_is_kept_too(tmp_path: Path) -> None:
    work = WorkDir.of(tmp_path / "dataset")
    work.open({}, "{}")
    work.write("0001-000000", Prepared())
    assert work.read_chats("0001-000000") == []
    assert work.num_keys("0001-000000") == 0


def test_another_job_starts_over(prepared: Prepared, tmp_path: Path) -> None:
    work = WorkDir.of(tmp_path / "dataset")
    work.open({"seed": 1}, "{}")
    work.write("0003-000000", prepared)
    work.open({"seed": 1}, "{}")
    assert work.names() == ["0003-000000"]
    (tmp_path / ".dataset.0123abcd.aside").mkdir()  # what a job that was killed while it packed has left
    (tmp_path / ".dataset.v2.0123abcd.aside").mkdir()  # another's
    work.open({"seed": 2}, "{}")
    assert work.names() == []
    work.remove()
    assert [path.name for path in tmp_path.iterdir()] == [".dataset.v2.0123abcd.aside"]
