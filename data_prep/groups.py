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

from data_prep.config import DataConfig, IdentityConfig, SourceConfig
from data_prep.contamination import EvaluationQuestions, load_questions
from data_prep.errors import DataError
from data_prep.identity import identity_chats
from data_prep.moderation import build_moderator
from data_prep.pack import count_rows, rows_to_table
from data_prep.prepare import Chunk, Item, Preparation, pack_chats
from data_prep.sources import read_records, source_name
from data_prep.work import WorkDir, rejects_to_table

P = ParamSpec("P")
R = TypeVar("R")

IDENTITY = "identity"
"""The source that rows of identity conversations name."""


def chunk_name(file: int, number: int) -> str:
    """The name of chunk `number` of a file; names sort in record order."""
    return f"{file:04d}-{number:06d}"


def group_of(chunk: str, config: DataConfig) -> str:
    """The name of the group that a chunk is packed with: as a chunk's, by the number of the group in its file."""
    file, number = chunk.split("-")
    return chunk_name(int(file), int(number) * config.chunk_size // config.group_size)


def read_chunks(item: dict[str, Any], *, config: DataConfig, work: WorkDir) -> Iterator[dict[str, Any]]:
    """The records of one file, `chunk_size` at a time. Of chunks that are done already only the name and the number."""
    seen = deque([0], maxlen=1)  # bytes read so far
    told = 0
    if item["path"]:
        source = SourceConfig(**item["source"])
        records = islice(read_records(item["path"], seen.append), source.max_records)
        items = ([record.position, record.value, record.error] for record in records)
    else:
        chats = identity_chats(config.identity or IdentityConfig())
        items = ([position, chat.to_record(), None] for position, chat in enumerate(chats))
    number = 0
    while chunk := list(islice(items, config.chunk_size)):
        name = chunk_name(item["file"], number)
        done = work.is_done(name)
        yield {
            "name": name,
            "file": item["file"],
            "path": item["path"],
            "weight": item["source"].get("weight", 1.0),
            "num_records": len(chunk),
            "num_bytes": seen[0] - told,
            "items": "" if done else json.dumps(chunk),
        }
        number, told = number + 1, seen[0]


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
            deduplicate=bool(row["path"]),
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
    """Pack the chunks of the group `name` and write its part-files; gives counts and rejects."""
    duplicates = {position: (reason, detail) for position, (reason, detail) in json.loads(row["duplicates"])}
    chats = [chat for chunk in row["chunks"] for chat in work.read_chats(chunk)]
    packed = pack_chats(chats, duplicates, config)
    counts: dict[str, Any] = {"repeated": packed.repeated}
    for split, rows in packed.rows.items():
        if rows:
            file = directory / split / f"part-{row['name']}.parquet"
            pq.write_table(rows_to_table(rows), file, compression="zstd")
        counts[split] = count_rows(rows)
    full = (len(packed_row.input_ids) * 20 // config.context_length * 5 for packed_row in packed.rows["train"])
    counts["fill"] = Counter(str(percent) for percent in full)
    rejects = [work.read_rejects(chunk) for chunk in row["chunks"]]
    table, sink = pa.concat_tables([*rejects, rejects_to_table(packed.rejects)]), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return {"name": row["name"], "counts": json.dumps(counts), "rejects": sink.getvalue().to_pybytes()}
