"""A dataset is taken for done only if nothing it was made of has changed."""

from pathlib import Path
from typing import Any

import pytest

from data_prep.config import DataConfig
from data_prep.errors import ConfigError, DataError
from data_prep.inputs import check_inputs, describe, find_dataset, input_files
from data_prep.manifest import read_manifest
from tests import tiny


@pytest.fixture
def config(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A recipe with every kind of input, and the dataset that it describes."""
    monkeypatch.chdir(tmp_path)
    Path("chats.jsonl").write_text("{}\n")
    Path("more.jsonl").write_text("{}\n")
    Path("questions.txt").write_text("Who was Genghis Khan really?\n")
    Path("patterns.yaml").write_text("insult: [bad]\n")
    fields: dict[str, Any] = {
        "sources": ["*.jsonl", {"path": "./chats.jsonl", "weight": 2}],
        "decontamination": {"questions": ["questions.txt"]},
        "moderation": {"kind": "local", "patterns": "patterns.yaml"},
    }
    tiny.write_dataset(Path("dataset"), tiny_model_dir, template="chatml", **fields)
    manifest = read_manifest("dataset")
    config = DataConfig.parse(manifest.config)
    manifest.model_copy(update={"sources": describe(config, input_files(config))}).write(Path("dataset"))
    return config


def test_files_come_once_with_the_settings_of_their_first_source(config: DataConfig) -> None:
    assert [(file.path, file.source.weight) for file in input_files(config)] == [("chats.jsonl", 1), ("more.jsonl", 1)]


def test_a_dataset_is_no_source_of_itself(config: DataConfig) -> None:
    with pytest.raises(DataError, match=r"data.sources: 'dataset/.*' lies in data.output, 'dataset'"):
        input_files(config.model_copy(update={"sources": ["*/*.json*"]}))


@pytest.mark.parametrize("name", ["chats.jsonl", "more.jsonl", "questions.txt", "patterns.yaml"])
def test_a_changed_file_makes_another_dataset(config: DataConfig, name: str) -> None:
    assert find_dataset(config) is not None
    Path(name).write_text(Path(name).read_text() + "\n")
    with pytest.raises(DataError, match="made from other chats, settings or tokenizer files"):
        find_dataset(config)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"sources": ["nowhere.json"]}, DataError, "nowhere.json: no such file"),
        ({"identity": {"count": 10_000}}, ConfigError, "data.identity.count: 10000 is not valid"),
        ({"decontamination": {"questions": ["nowhere.txt"]}}, DataError, "nowhere.txt: No such file"),
        ({"moderation": {"kind": "local", "patterns": "chats.jsonl"}}, ConfigError, "expected a mapping"),
        ({"output": "."}, ConfigError, "it is not ours to replace"),
    ],
)
def test_what_could_only_fail_later_is_refused(
    config: DataConfig, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    check_inputs(config)
    with pytest.raises(error, match=message):
        check_inputs(DataConfig.parse({**config.model_dump(), "sources": ["more.jsonl"], **fields}))
