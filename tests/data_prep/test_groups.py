"""What the tasks of the dataset job take and give."""

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.config import DataConfig
from data_prep.groups import chunk_name, read_chunks
from data_prep.work import WorkDir
from tests import tiny


def config(**fields: Any) -> DataConfig:
    return DataConfig.parse({"output": "dataset", "tokenizer": "x", "sources": ["x"], "group_size": 4, **fields})


def chunks(folder: Path, files: list[Path], **source: Any) -> list[dict[str, Any]]:
    named = [{"number": number, "path": str(file)} for number, file in enumerate(files, start=1)]
    work = WorkDir.of(folder / "dataset")
    return list(read_chunks({"files": named, "source": {"path": "x", **source}}, config=config(), work=work))


def test_a_cap_counts_over_all_files_of_a_source(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.json" for name in "abc"]
    for file in files:
        file.write_text(json.dumps(tiny.chats(6)))
    assert [(row["name"], row["num_records"]) for row in chunks(tmp_path, files, max_records=8)] == [
        (chunk_name(1, 0), 4),
        (chunk_name(1, 1), 2),
        (chunk_name(2, 0), 2),
    ]
    assert sum(row["num_records"] for row in chunks(tmp_path, files)) == 18
    assert sum(row["num_bytes"] for row in chunks(tmp_path, files)) == sum(file.stat().st_size for file in files)


def test_columns_of_any_type_stand_beside_the_chats(tmp_path: Path) -> None:
    columns = {
        "messages": [[{"role": "user", "content": "Hi"}]],
        "created": [datetime.datetime(2023, 4, 1)],
        "raw": [b"\xff"],
    }
    pq.write_table(pa.table(columns), tmp_path / "chats.parquet")
    (row,) = chunks(tmp_path, [tmp_path / "chats.parquet"])
    ((position, value, error),) = json.loads(row["items"])
    assert (position, value["messages"][0]["content"], error) == (0, "Hi", None)


def test_the_names_of_chunks_sort_in_record_order() -> None:
    places = [(0, 0), (1, 0), (1, 9), (1, 10), (2, 0), (10_000, 0)]
    assert sorted(chunk_name(*place) for place in places) == [chunk_name(*place) for place in places]
