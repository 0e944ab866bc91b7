"""`vicuna prep inspect`: a training row in the terminal, what is trained in colour."""

from pathlib import Path

import pyarrow.parquet as pq
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from data_prep.errors import ConfigError, DataError
from data_prep.manifest import Manifest, read_manifest
from data_prep.pack import Row, table_to_rows
from data_prep.prepare import SPLITS
from data_prep.tokenizer import fingerprint, load_tokenizer
from ray_apps.console import console

_TRAINED = ("bold green", "bold cyan")  # in turn, so that two answers side by side are told apart
_CONTEXT = "dim"


def inspect_dataset(dataset: Path, row: int | None, identifier: str | None) -> None:
    """Print what the dataset holds, and training row `row`, or each row with the chat `identifier`, held out ones too.

    Raises:
        ConfigError: both are given.
        DataError: there is no dataset, no such row or no such chat; or its tokenizer is gone.
    """
    manifest = read_manifest(dataset)
    train = manifest.train
    console.print(
        f"{dataset}: {train.conversations:,} chats in {train.rows:,} rows of {manifest.context_length}, "
        f"{train.tokens:,} tokens, {train.trained_tokens:,} of them trained, {train.fill:.1%} full",
        soft_wrap=True,
    )
    if row is not None and identifier is not None:
        raise ConfigError("--row and --id: give one of them")
    tokenizer = _tokenizer(manifest)
    places = find_rows(dataset, identifier) if identifier is not None else [("train", row or 0)]
    for split, number in places:
        name = f"row {number}" if split == "train" else f"held out row {number}"
        print_row(name, read_row(dataset, number, split), tokenizer)


def _tokenizer(manifest: Manifest) -> PreTrainedTokenizerBase:
    name = manifest.config["tokenizer"]
    tokenizer = load_tokenizer(name)
    if fingerprint(tokenizer) != manifest.tokenizer_fingerprint:
        raise DataError(f"the dataset was made with another tokenizer than {name!r} now has")
    return tokenizer


def read_row(dataset: Path, number: int, split: str = "train") -> Row:
    """Row `number` of a split, counted from 0 through the part-files.

    Raises:
        ConfigError: there are fewer rows.
    """
    first = 0
    for file in sorted((dataset / split).glob("*.parquet")):
        rows = pq.read_metadata(file).num_rows
        if number < first + rows:
            return next(table_to_rows(pq.read_table(file).slice(number - first, 1)))
        first += rows
    raise ConfigError(f"--row: {number} is not valid; expected 0 to {first - 1}")


def find_rows(dataset: Path, identifier: str) -> list[tuple[str, int]]:
    """Split and number of the rows that hold the chat `identifier`, whole or a part of it.

    Raises:
        DataError: none does.
    """
    found = []
    for split in SPLITS:
        first = 0
        for file in sorted((dataset / split).glob("*.parquet")):
            table = pq.read_table(file, columns=["document_ids", "document_parts"])
            for index, (ids, parts) in enumerate(
                zip(table["document_ids"].to_pylist(), table["document_parts"].to_pylist(), strict=True)
            ):
                if any(_is_of(name, part, identifier) for name, part in zip(ids, parts, strict=True)):
                    found.append((split, first + index))
            first += table.num_rows
    if not found:
        raise DataError(f"--id: no row holds the chat {identifier!r}; see rejects.parquet for why it may be out")
    return found


def _is_of(name: str, part: int, identifier: str) -> bool:
    return name == identifier or name == f"{identifier}_{part}"


def print_row(name: str, row: Row, tokenizer: PreTrainedTokenizerBase) -> None:
    """Print one row, chat by chat."""
    console.print(f"\n[bold]{name}[/bold]: {len(row.input_ids)} tokens")
    start = 0
    for index, length in enumerate(row.document_lengths):
        source, part = row.document_sources[index], row.document_parts[index]
        console.rule(Text(f"{row.document_ids[index]}  {source}, from message {part}, {length} tokens"), align="left")
        console.print(colour(row, start, length, tokenizer), soft_wrap=True)
        start += length


def colour(row: Row, start: int, length: int, tokenizer: PreTrainedTokenizerBase) -> Text:
    """The text of the chat at tokens `[start, start + length)`: trained tokens in colour, context dimmed."""
    shown, answers, previous = Text(), 0, 0.0
    end = start
    while end < start + length:
        weight = row.weights[end]
        stop = end
        while stop < start + length and row.weights[stop] == weight:
            stop += 1
        answers += bool(weight) and not previous
        style = _TRAINED[answers % 2] if weight else _CONTEXT
        shown.append(str(tokenizer.decode(row.input_ids[end:stop].tolist())), style)
        end, previous = stop, weight
    return shown
