"""What one task of the dataset job does: read chunks of records, prepare a chunk, pack a group of chunks.

Plain dicts in and out, large things in files.
"""

import gc
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from itertools import islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.config import DataConfig, IdentityConfig
from data_prep.contamination import EvaluationQuestions, load_questions
from data_prep.errors import DataError
from data_prep.identity import identity_chats
from data_prep.moderation import build_moderator
from data_prep.pack import count_rows, rows_to_table
from data_prep.prepare import Chunk, Item, Preparation, leave_out, pack_chats
from data_prep.sources import read_records, source_name
from data_prep.work import WorkDir, rejects_to_table

P = ParamSpec("P")
R = TypeVar("R")

IDENTITY = "identity"
"""The source that rows of identity conversations name."""


def chunk_name(file: int, number: int) -> str:
    """The name of chunk `number` of a file; names sort in record order."""
    return f"{file:06d}-{number:06d}"


def read_chunks(item: dict[str, Any], *, config: DataConfig, work: WorkDir) -> Iterator[dict[str, Any]]:
    """The records of some files of one source, `chunk_size` at a time. Of chunks that are done only how much they are.

    `item` has the `files` (number and path; no path for the identity conversations) and the settings of their `source`.
    """
    left = item["source"].get("max_records")
    for file in item["files"]:
        seen = deque([0], maxlen=1)  # bytes read so far
        told = number = 0
        items = islice(_read_items(file["path"], config, seen), left)
        while chunk := list(islice(items, config.chunk_size)):
            name = chunk_name(file["number"], number)
            yield {
                "name": name,
                "file": file["number"],
                "path": file["path"],
                "weight": item["source"].get("weight", 1.0),
                "num_records": len(chunk),
                "num_bytes": seen[0] - told,
                "items": "" if work.is_done(name) else json.dumps(chunk, default=str),  # Parquet has dates
            }
            number, told = number + 1, seen[0]
            left = None if left is None else left - len(chunk)


def _read_items(path: str, config: DataConfig, seen: deque[int]) -> Iterator[list[Any]]:
    if path:
        return ([record.position, record.value, record.error] for record in read_records(path, seen.append))
    chats = identity_chats(config.identity or IdentityConfig())
    return ([position, chat.to_record(), None] for position, chat in enumerate(chats))


def _task(function: Callable[P, R]) -> Callable[P, R]:
    """Make `function` fit to be run as a task.

    Ray puts words of its own where an OSError has its file name; a plain message it leaves as it is. The collector of
    cyclic garbage pauses meanwhile: chats are many objects and no cycles, and the search takes a sixth of the time.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        gc.disable()
        try:
            return function(*args, **kwargs)
        except OSError as error:
            raise DataError(f"preparing the chats failed: {type(error).__name__}: {error}") from error
        finally:
            gc.enable()

    return run


@_task
def prepare_chunk(row: dict[str, Any], *, config: DataConfig, work: WorkDir) -> dict[str, Any]:
    """Prepare one chunk that `read_chunks` gave, unless it is done already; gives how much that was."""
    if row["items"]:
        chunk = Chunk(
            file=row["file"],
            source=source_name(row["path"]) if row["path"] else IDENTITY,
            items=[Item(*values) for values in json.loads(row["items"])],
            weight=row["weight"],
            of_users=bool(row["path"]),
        )
        work.write(row["name"], _preparation(config.model_dump_json(), work).prepare(chunk))
    return {"records": row["num_records"], "num_bytes": row["num_bytes"]}


@lru_cache(maxsize=1)
def _preparation(config_json: str, work: WorkDir) -> Preparation:
    """What this process prepares groups with, loaded once."""
    config = DataConfig.model_validate_json(config_json)
    wanted = config.decontamination
    questions = EvaluationQuestions(load_questions(wanted.questions), wanted.ngram_words) if wanted else None
    return Preparation(config, work.encoders(), build_moderator(config.moderation), questions)


@_task
def pack_group(row: dict[str, Any], *, config: DataConfig, work: WorkDir, directory: Path) -> dict[str, Any]:
    """Pack the chunks of the group `name` without the duplicates and write its part-files; gives counts and rejects."""
    duplicates = json.loads(row["duplicates"])
    chats, tables = [], []
    unique = 0
    for chunk in row["chunks"]:
        gone = {int(position): (reason, detail) for position, (reason, detail) in duplicates.get(chunk, {}).items()}
        kept, rejects = leave_out(work.read_chats(chunk), gone)
        unique += len({chat.position for chat in kept})
        chats += kept
        tables += [work.read_rejects(chunk), rejects_to_table(rejects)]
    packed = pack_chats(chats, config)
    counts: dict[str, Any] = {"steps": {"repeated": packed.repeated, "unique": unique}}
    for split, rows in packed.rows.items():
        if rows:
            file = directory / split / f"part-{row['name']}.parquet"
            pq.write_table(rows_to_table(rows), file, compression="zstd")
        counts[split] = count_rows(rows)
    full = (len(packed_row.input_ids) * 20 // config.context_length * 5 for packed_row in packed.rows["train"])
    counts["fill"] = Counter(str(percent) for percent in full)
    table, sink = pa.concat_tables(tables), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return {"name": row["name"], "counts": json.dumps(counts), "rejects": sink.getvalue().to_pybytes()}
