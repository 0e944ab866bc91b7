"""What a dataset is made of: counts in and out of each step, every drop reason, and what makes its ids comparable.

Timings and facts about machines are not here: the same chats and recipe give the same manifest.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from data_prep.config import Settings
from data_prep.errors import DataError

MANIFEST_NAME = "manifest.json"


class SourceFile(Settings):
    """One input file, with a hash of its content, or of its time of change where it is on object storage."""

    path: str
    num_bytes: int
    sha256: str


class SplitCounts(Settings):
    """What one part of the dataset holds."""

    rows: int = 0
    conversations: int = 0
    """Chats, or parts of chats that were split."""
    tokens: int = 0
    trained_tokens: int = 0
    """Tokens the loss covers."""
    fill: float = 0.0
    """Tokens over rows × context length."""


class Counts(Settings):
    """What came in and went out of each step.

    Every record and every part of a chat is accounted for:
    `records + split_parts + repeated = sum(dropped) + train + eval conversations`.
    """

    records: int = 0
    """Records read, bad ones and identity conversations included."""
    read: int = 0
    """Records that are conversations, and were to be taken."""
    repaired: int = 0
    """Conversations that lost an answer before the first question, or a question after the last answer."""
    html_messages: int = 0
    """Messages whose HTML became Markdown."""
    filtered: int = 0
    """Conversations that passed the filters."""
    judged: int = 0
    """Conversations that passed moderation and hold no evaluation question."""
    fitted: int = 0
    """Conversations of which at least a part fits a row and has an answer to train on."""
    unique: int = 0
    """Of these, the ones that are no duplicates."""
    split_parts: int = 0
    """Conversations more, since long ones were split."""
    repeated: int = 0
    """Conversations more, since some are taken several times."""
    truncated: int = 0
    """Conversations whose last answer was cut off where the row ends."""
    truncated_tokens: int = 0
    """Tokens of these answers that were cut off."""
    with_lost_bytes: int = 0
    """Conversations with characters that the tokenizer has no tokens for: their rows are without these."""
    masked: dict[str, int] = Field(default={})
    """Answers that are not trained on, by reason."""
    dropped: dict[str, int] = Field(default={})
    """Conversations, or parts of them, left out, by reason."""


class Manifest(Settings):
    """`manifest.json` of a dataset."""

    row_schema_version: int
    tokenizer_fingerprint: str
    template: str
    context_length: int
    counts: Counts
    histograms: dict[str, dict[str, int]]
    """Conversations by language and by number of messages, parts by number of tokens (the power of two at or below),
    training rows by the share that is filled, in steps of 5 %."""
    train: SplitCounts
    eval: SplitCounts
    sources: list[SourceFile]
    config: dict[str, Any]
    versions: dict[str, str]

    def write(self, dataset: Path) -> None:
        """Write `manifest.json` into the directory `dataset`."""
        (dataset / MANIFEST_NAME).write_text(json.dumps(self.model_dump(), indent=2, sort_keys=True) + "\n")


def read_manifest(dataset: str | Path) -> Manifest:
    """Read the manifest of `dataset`.

    Raises:
        DataError: there is no dataset, or its manifest is not one of ours.
    """
    path = Path(dataset) / MANIFEST_NAME
    try:
        values = json.loads(path.read_text())
    except OSError:
        raise DataError(f"dataset {str(dataset)!r}: there is no {MANIFEST_NAME}; make one with `vicuna prep`") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}; make it again with `vicuna prep --fresh`") from None
    try:
        return Manifest.model_validate(values)
    except ValueError:
        raise DataError(
            f"{path}: not a dataset manifest of this version; make it again with `vicuna prep --fresh`"
        ) from None


def check_part_files(dataset: str | Path, manifest: Manifest) -> None:
    """Refuse a dataset whose part-files are damaged or not those that the manifest counts.

    Raises:
        DataError: naming the file, or the part and both counts.
    """
    for split, counts in (("train", manifest.train), ("eval", manifest.eval)):
        rows = sum(_count_rows(file) for file in sorted((Path(dataset) / split).glob("*.parquet")))
        if rows != counts.rows:
            raise DataError(
                f"dataset {str(dataset)!r}: {split}/ has {rows} rows, its manifest counts {counts.rows}; "
                "make it again with `vicuna prep --fresh`"
            )


def _count_rows(file: Path) -> int:
    try:
        return int(pq.read_metadata(file).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: damaged Parquet file: {str(error).splitlines()[0]}") from None


def split_counts(counts: Mapping[str, int], context_length: int) -> SplitCounts:
    """Counts of one part; `counts` holds `rows`, `conversations`, `tokens` and `trained_tokens`."""
    rows = counts.get("rows", 0)
    fill = counts.get("tokens", 0) / (rows * context_length) if rows else 0.0
    return SplitCounts(**Counter(counts), fill=round(fill, 4))
