"""The files in which the work on chunks is kept until a dataset is whole, so that a killed job goes on from them.

.NAME.work/
    job.json                  what is being made of what; another job does not go on from here
    tokenizer.json            the tokenizer as the tasks need it
    chats/CHUNK.parquet       chats in tokens
    keys/CHUNK.parquet        what they are known by
    rejects/CHUNK.parquet     what was left out, and why
    done/CHUNK.json           counts; written last, so that a chunk that has it is whole
"""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.dedup import KEY_SCHEMA, Key
from data_prep.encode import EncodedChat
from data_prep.encoders import Encoders
from data_prep.pack import Document
from data_prep.prepare import Chat, Prepared, Reject
from data_prep.storage import write_text

CHAT_SCHEMA = pa.schema(
    {
        "position": pa.int64(),
        "id": pa.string(),
        "source": pa.string(),
        "part": pa.int32(),
        "held_out": pa.bool_(),
        "copies": pa.int8(),
        "input_ids": pa.list_(pa.int32()),
        "weights": pa.list_(pa.float32()),
    }
)
REJECT_SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "position": pa.int64(),
        "id": pa.string(),
        "part": pa.int32(),
        "reason": pa.string(),
        "detail": pa.string(),
    }
)


@dataclass(frozen=True)
class WorkDir:
    """The files of one job."""

    path: Path

    @staticmethod
    def of(output: Path) -> "WorkDir":
        """Beside the dataset that the job makes."""
        return WorkDir(output.with_name(f".{output.name}.work"))

    def open(self, job: dict[str, Any], tokenizer: str) -> None:
        """Go on from what is there, if it is of the same job; otherwise start over. `tokenizer`: its description."""
        left_by_kills = f"{escape(self.path.stem)}.{'[0-9a-f]' * 8}.aside"
        for stale in self.path.parent.glob(left_by_kills):
            shutil.rmtree(stale, ignore_errors=True)
        description = json.dumps(job, sort_keys=True)
        file = self.path / "job.json"
        if file.exists() and file.read_text() == description:
            return
        self.remove()
        for name in ("chats", "keys", "rejects", "done"):
            (self.path / name).mkdir(parents=True)
        write_text(self.path / "tokenizer.json", tokenizer)
        write_text(file, description)

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.path, ignore_errors=True)

    def encoders(self) -> Encoders:
        """The encoders of the job's tokenizer."""
        return Encoders((self.path / "tokenizer.json").read_text())

    def is_done(self, name: str) -> bool:
        """Whether the chunk `name` is whole."""
        return (self.path / "done" / f"{name}.json").exists()

    def names(self) -> list[str]:
        """The chunks that are whole, in record order."""
        return sorted(file.stem for file in (self.path / "done").glob("*.json"))

    def write(self, name: str, prepared: Prepared) -> None:
        """Keep what the chunk `name` gave."""
        self._write_table("chats", name, chats_to_table(prepared.chats))
        self._write_table("keys", name, _table(prepared.keys, KEY_SCHEMA))
        self._write_table("rejects", name, rejects_to_table(prepared.rejects))
        done = {"counts": prepared.counts, "samples": prepared.samples}
        write_text(self.path / "done" / f"{name}.json", json.dumps(done))

    def _write_table(self, kind: str, name: str, table: pa.Table) -> None:
        pq.write_table(table, self.path / kind / f"{name}.parquet", compression="zstd", compression_level=1)

    def read_done(self, name: str) -> tuple[dict[str, Counter[str]], list[tuple[str, int, dict[str, Any]]]]:
        """Counts and samples of the chunk `name`."""
        done = json.loads((self.path / "done" / f"{name}.json").read_text())
        counts = {subject: Counter(counted) for subject, counted in done["counts"].items()}
        return counts, [(place, position, record) for place, position, record in done["samples"]]

    def read_keys(self, name: str) -> pa.Table:
        """Keys of the chunk `name`."""
        return pq.read_table(self.path / "keys" / f"{name}.parquet")

    def num_keys(self, name: str) -> int:
        """Number of keys of the chunk `name`."""
        return int(pq.read_metadata(self.path / "keys" / f"{name}.parquet").num_rows)

    def read_chats(self, name: str) -> list[Chat]:
        """Chats of the chunk `name`."""
        return table_to_chats(pq.read_table(self.path / "chats" / f"{name}.parquet"))

    def read_rejects(self, name: str) -> pa.Table:
        """Rejects of the chunk `name`."""
        return pq.read_table(self.path / "rejects" / f"{name}.parquet")


def _table(rows: Sequence[Key] | Sequence[Reject], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def rejects_to_table(rejects: Sequence[Reject]) -> pa.Table:
    """Rejects as a table of `REJECT_SCHEMA`."""
    return _table(rejects, REJECT_SCHEMA)


def chats_to_table(chats: Sequence[Chat]) -> pa.Table:
    """Chats as a table of `CHAT_SCHEMA`."""
    documents = [chat.document for chat in chats]
    columns: list[Any] = [
        [chat.position for chat in chats],
        [document.id for document in documents],
        [document.source for document in documents],
        [document.part for document in documents],
        [chat.held_out for chat in chats],
        [chat.copies for chat in chats],
        _ragged([document.tokens.input_ids for document in documents], np.int32),
        _ragged([document.tokens.weights for document in documents], np.float32),
    ]
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns, CHAT_SCHEMA, strict=True)
    ]
    return pa.table(arrays, schema=CHAT_SCHEMA)


def _ragged(values: Sequence[Any], dtype: Any) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])]).astype(np.int32)
    flat = np.concatenate(values) if values else np.zeros(0, dtype)
    return pa.ListArray.from_arrays(offsets, pa.array(flat))


def table_to_chats(table: pa.Table) -> list[Chat]:
    """Chats of a table of `CHAT_SCHEMA`."""
    columns = {name: table[name].to_pylist() for name in CHAT_SCHEMA.names[:-2]}
    ids, weights = (table[name].combine_chunks() for name in ("input_ids", "weights"))
    offsets = ids.offsets.to_numpy()
    flat_ids, flat_weights = ids.values.to_numpy(), weights.values.to_numpy()
    chats = []
    for index in range(table.num_rows):
        span = slice(offsets[index], offsets[index + 1])
        position, name, source, part, held_out, copies = (column[index] for column in columns.values())
        tokens = EncodedChat(flat_ids[span], flat_weights[span])
        chats.append(Chat(position, Document(name, tokens, source, part), held_out, copies))
    return chats
