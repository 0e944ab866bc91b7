"""A manifest is read back as it was written, or refused; part-files are held against it."""

import json
from pathlib import Path

import pytest

from data_prep.errors import DataError
from data_prep.manifest import MANIFEST_NAME, check_part_files, read_manifest, split_counts
from tests import tiny


@pytest.fixture
def dataset(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return tiny.write_dataset(tmp_path / "dataset", tiny_model_dir, count=20, template="chatml", eval_fraction=0.3)


def test_a_manifest_survives_a_round_trip(dataset: Path) -> None:
    text = (dataset / MANIFEST_NAME).read_text()
    read_manifest(dataset).write(dataset)
    assert (dataset / MANIFEST_NAME).read_text() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"dataset '.*': there is no manifest\.json; make one with `vicuna prep`"),
        ("{", r"manifest\.json: not valid JSON"),
        ("[]", r"manifest\.json: not a dataset manifest of this version"),
        ('{"template": "chatml"}', r"manifest\.json: not a dataset manifest of this version"),
    ],
)
def test_a_wrong_manifest_is_refused(dataset: Path, text: str | None, message: str) -> None:
    (dataset / MANIFEST_NAME).unlink() if text is None else (dataset / MANIFEST_NAME).write_text(text)
    with pytest.raises(DataError, match=message):
        read_manifest(dataset)


def test_part_files_are_counted_in_both_parts(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    assert manifest.train.rows > 0
    assert manifest.eval.rows > 0
    check_part_files(dataset, manifest)
    next((dataset / "eval").iterdir()).unlink()
    with pytest.raises(DataError, match=rf"eval/ has 0 rows, its manifest counts {manifest.eval.rows}"):
        check_part_files(dataset, manifest)


def test_fill_is_the_share_of_tokens_in_rows() -> None:
    assert split_counts({"rows": 4, "conversations": 9, "tokens": 300, "trained_tokens": 100}, 100).fill == 0.75
    assert json.loads(split_counts({}, 100).model_dump_json()) == {
        "rows": 0,
        "conversations": 0,
        "tokens": 0,
        "trained_tokens": 0,
        "fill": 0.0,
    }
