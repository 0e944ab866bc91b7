"""A row as it is trained on, in the terminal."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.errors import ConfigError, DataError
from data_prep.tokenizer import load_tokenizer
from ray_apps.inspect_dataset import colour, find_rows, inspect_dataset, read_row
from tests import tiny


@pytest.fixture(scope="module")
def dataset(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    return tiny.write_dataset(folder / "dataset", tiny_model_dir, count=30, context_length=128, template="chatml")


def test_trained_tokens_are_coloured_and_nothing_else(dataset: Path, tiny_model_dir: Path) -> None:
    tokenizer, row = load_tokenizer(str(tiny_model_dir)), read_row(dataset, 0)
    text = colour(row, 0, row.document_lengths[0], tokenizer)
    coloured = [text.plain[span.start : span.end] for span in text.spans if span.style != "dim"]
    assert coloured
    assert all(part.endswith("<|im_end|>") and ("It is" in part or "Yes" in part) for part in coloured)
    assert "What is" in text.plain


def test_a_chat_is_found_by_its_id_and_its_rows_are_shown(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ((split, number),) = find_rows(dataset, "chat-17")
    assert split == "train"
    assert "chat-17" in read_row(dataset, number).document_ids
    inspect_dataset(dataset, None, "chat-17")
    shown = capsys.readouterr().out
    assert f"row {number}" in shown
    assert "What is 17 plus 17?" in shown


def test_a_held_out_chat_is_found_too(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = tiny.write_dataset(tmp_path / "dataset", tiny_model_dir, count=8, context_length=128, template="chatml")
    (dataset / "train").rename(dataset / "eval")
    inspect_dataset(dataset, None, "chat-5")
    assert "held out row" in capsys.readouterr().out


def test_the_first_row_is_shown_by_default(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect_dataset(dataset, None, None)
    assert "row 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("look", "error", "message"),
    [
        (lambda dataset: inspect_dataset(dataset, 10_000, None), ConfigError, r"--row: 10000 .* expected 0 to \d+"),
        (
            lambda dataset: inspect_dataset(dataset, None, "nobody"),
            DataError,
            "no row holds",
        ),
        (lambda dataset: inspect_dataset(dataset, 1, "chat-17"), ConfigError, "--row and --id: give one of them"),
        (lambda dataset: inspect_dataset(dataset / "x", 0, None), DataError, "there is no manifest.json"),
    ],
)
def test_what_is_not_there_is_one_line(
    dataset: Path, look: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        look(dataset)
