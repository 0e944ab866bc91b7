"""Every whole record is read and every broken one reported, whatever the file, the chunk or the place of the cut."""

import glob
import gzip
import json
import random
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.fs import FileSystem, S3FileSystem

from data_prep import json_records, sources
from data_prep.errors import DataError
from data_prep.sources import Record, expand_source, read_records

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TURN = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": TEXT})
CHAT = st.fixed_dictionaries({"id": TEXT, "conversations": st.lists(TURN, max_size=3)})
CHATS = st.lists(CHAT, max_size=5)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


def read(folder: Path, content: bytes | str, name: str = "chats.json") -> list[Record]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_records(str(path)))


def values(records: list[Record]) -> list[Any]:
    return [record.value for record in records if record.error is None]


def errors(records: list[Record]) -> Iterator[str]:
    return (record.error for record in records if record.error is not None)


@given(chats=CHATS, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans(), chunk=st.integers(1, 40))
def test_an_array_is_read_whole_in_chunks_of_any_size(
    folder: Path, chats: list[Any], indent: int | None, ascii_only: bool, chunk: int
) -> None:
    with patch.object(json_records, "CHUNK_BYTES", chunk):
        records = read(folder, json.dumps(chats, indent=indent, ensure_ascii=ascii_only))
    assert [(record.position, record.value, record.error) for record in records] == [
        (index, chat, None) for index, chat in enumerate(chats)
    ]


@given(chats=CHATS, chunk=st.integers(1, 40), data=st.data())
def test_an_array_cut_anywhere_gives_its_whole_records_and_then_the_torn_one(
    folder: Path, chats: list[Any], chunk: int, data: st.DataObject
) -> None:
    content = json.dumps(chats, ensure_ascii=False).encode()
    cut = data.draw(st.integers(1, len(content) - 1))
    with patch.object(json_records, "CHUNK_BYTES", chunk):
        records = read(folder, content[:cut])
    assert all(record.error is None for record in records[:-1])
    assert values(records) == chats[: len(records) - 1]
    assert "cut off" in str(records[-1].error) or "Unicode" in str(records[-1].error)


@given(chats=CHATS, name=st.sampled_from(["chats.jsonl", "lines.json"]), chunk=st.integers(1, 40))
def test_lines_are_read_whatever_the_file_is_called(folder: Path, chats: list[Any], name: str, chunk: int) -> None:
    content = "".join(json.dumps(chat) + "\n\n" for chat in chats)
    with patch.object(json_records, "CHUNK_BYTES", chunk):
        assert values(read(folder, content, name)) == chats


@given(content=st.binary(max_size=200), name=st.sampled_from(["any.json", "any.jsonl"]))
def test_no_content_crashes(folder: Path, content: bytes, name: str) -> None:
    records = read(folder, content, name)
    assert [record.position for record in records] == list(range(len(records)))


def test_a_torn_tail_is_reported_with_its_byte_offset(folder: Path) -> None:
    records = read(folder, '[{"id": "é"}, {"id": "b", "conv')
    assert records[0] == Record(0, {"id": "é"})
    assert records[1].error == "byte 15: the record is cut off"
    assert list(errors(read(folder, '[{"id": "a"},'))) == ["byte 13: the array is cut off"]


def test_reading_goes_on_after_a_broken_record(folder: Path) -> None:
    records = read(folder, '[{"id": 1}, {"id": 2, oops}, {"id": "3}, {"id": 4}, {"id": 5}]')
    assert [record["id"] for record in values(records)] == [1, 4, 5]
    assert list(errors(records)) == [
        "byte 12: not JSON: Expecting property name enclosed in double quotes",
        "byte 29: not JSON: Expecting ',' delimiter",
    ]


def test_what_follows_the_array_is_reported(folder: Path) -> None:
    assert list(errors(read(folder, "[] {}"))) == ["byte 3: there is more after the end of the array"]


def test_a_broken_line_costs_that_line_only(folder: Path) -> None:
    records = read(folder, b'\xef\xbb\xbf{"id": 1}\n{"id"\n\xff\n\n{"id": 2}', "chats.jsonl")
    assert values(records) == [{"id": 1}, {"id": 2}]
    assert list(errors(records)) == [
        "line 2: not JSON: Expecting ':' delimiter",
        "line 3: not JSON: Expecting value",
    ]


@pytest.mark.parametrize("name", ["chats.json", "chats.jsonl"])
@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"id": ' + b"[" * 300 + b"1" + b"]" * 300 + b"}", "nested more than 100 deep"),
        (b'{"id": ' + b"9" * 5_000 + b"}", "limit"),
    ],
    ids=["endless", "deep", "long number"],
)
def test_a_record_no_later_step_could_store_is_a_bad_one(folder: Path, name: str, bad: bytes, problem: str) -> None:
    first, last = b'{"id": "a"}', b'{"id": "\\ud83d\\ude00"}'
    lines = [first, bad, last]
    content = b"[" + b",".join(lines) + b"]" if name.endswith(".json") else b"\n".join(lines)
    records = read(folder, content, name)
    assert values(records) == [{"id": "a"}, {"id": "😀"}]
    assert [problem in error for error in errors(records)] == [True]


@pytest.mark.parametrize("name", ["chats.json", "chats.jsonl"])
@pytest.mark.parametrize("bad", [b"\\ud83d", b"\\uDE00", b"\xff"])
def test_characters_that_are_none_are_replaced(folder: Path, name: str, bad: bytes) -> None:
    records = read(folder, b'{"a": ["x' + bad + b'y"], "b": "\\ud83d\\ude00", "c": "\xc3\xa9"}', name)
    assert values(records) == [{"a": ["x\ufffdy"], "b": "😀", "c": "é"}]


def test_an_array_goes_on_after_a_broken_first_record(folder: Path) -> None:
    content = '[{ "chat" : {"id": 1 oops}}, {"chat": {"id": 2}}, {"chat": {"id": 3}}]'
    records = read(folder, content)
    assert values(records) == [{"chat": {"id": 2}}, {"chat": {"id": 3}}]
    assert len(list(errors(records))) == 1


@pytest.mark.parametrize("name", ["chats.json", "chats.jsonl"])
def test_an_endless_record_is_given_up(folder: Path, name: str) -> None:
    content = '{"id": "' + "x" * 500 + '"}\n{"id": 2}\n'
    with patch.object(json_records, "_MAX_RECORD_BYTES", 100), patch.object(json_records, "CHUNK_BYTES", 60):
        records = read(folder, content, name)
    assert values(records) == [{"id": 2}]
    assert len(list(errors(records))) == 1


def test_a_source_is_a_file_a_folder_or_a_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.json", "a.jsonl", "deep/er/c.JSON", ".hidden/d.json", "deep/.e.json", "notes.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("[]")
    found = ["a.jsonl", "b.json", "deep/er/c.JSON"]
    assert expand_source(".") == found
    assert expand_source("./b.json") == ["b.json"]
    assert expand_source("*.json*") == found[:2]
    assert expand_source("deep") == expand_source("**/*.JSON") == found[2:]


def test_a_name_with_brackets_is_a_name_first(tmp_path: Path) -> None:
    (tmp_path / "chats[1].json").write_text("[]")
    assert expand_source(str(tmp_path / "chats[1].json")) == [str(tmp_path / "chats[1].json")]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("missing.json", "no such file"),
        ("*.json", "no such file"),
        ("empty", "holds no file that can be read"),
        ("notes.txt", "cannot be read"),
        ("*.txt", "holds no file that can be read"),
    ],
)
def test_a_useless_source_is_named_with_what_would_be_valid(tmp_path: Path, path: str, problem: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no chats")
    with pytest.raises(DataError, match=problem) as error:
        expand_source(str(tmp_path / path))
    assert path in str(error.value)
    assert ".json, .jsonl, .parquet" in str(error.value)


@pytest.mark.parametrize("name", ["missing.json", "chats.txt", "folder.json"])
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match=name):
        list(read_records(str(tmp_path / name)))


RECORDS = [{"id": f"{number}", "conversations": [{"from": "human", "value": "Grüße 你好"}]} for number in range(3000)]


@pytest.mark.parametrize("name", ["a.json.gz", "a.json.zst", "a.jsonl.gz", "a.JSONL.ZST", "a.parquet"])
def test_packed_files_and_parquet_are_read_like_plain_ones(tmp_path: Path, name: str) -> None:
    text = json.dumps(RECORDS) if ".json." in name else "".join(json.dumps(record) + "\n" for record in RECORDS)
    write_as(tmp_path / name, text)
    told: list[int] = []
    records = list(read_records(str(tmp_path / name), told.append))
    assert values(records) == RECORDS
    assert [record.position for record in records] == list(range(3000))
    assert told == sorted(told)
    assert told[-1] == (tmp_path / name).stat().st_size


def write_as(path: Path, text: str) -> None:
    kind = path.suffix.lower()
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist([json.loads(line) for line in text.splitlines()]), path)
        return
    with pa.CompressedOutputStream(str(path), {".gz": "gzip", ".zst": "zstd"}[kind]) as stream:
        stream.write(text.encode())


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.zst"])
def test_a_packed_file_that_breaks_off_gives_its_records_and_then_an_error(tmp_path: Path, name: str) -> None:
    text = json.dumps(RECORDS) if ".json." in name else "".join(json.dumps(record) + "\n" for record in RECORDS)
    path = tmp_path / name
    write_as(path, text)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    records = list(read_records(str(path)))
    good = values(records)
    assert good == RECORDS[: len(good)]
    assert list(errors(records))


@given(
    st.lists(st.sampled_from(["a", "b", "*", "**", "?", "a.json"]), min_size=1, max_size=4)
    .filter(lambda parts: parts[-1] != "**")
    .map("/".join)
)
def test_globs_on_object_storage_mean_what_they_mean_on_a_disk(folder: Path, pattern: str) -> None:
    root = folder / "globs"
    if not root.exists():
        for name in ("a.json", "a/a.json", "a/b/a.json", "b/a/b/a.json", "b/b"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("[]")
    matcher = sources._glob_pattern(pattern)
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    local = {Path(path).as_posix() for path in glob.glob(pattern, root_dir=root, recursive=True)}
    assert {path for path in found if matcher.match(path)} == local & found


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileSystem]:
    """An S3 endpoint on loopback with the bucket `chats`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    filesystem = S3FileSystem(endpoint_override=f"http://{host}:{port}", allow_bucket_creation=True, region="us-east-1")
    filesystem.create_dir("chats")
    yield filesystem
    server.stop()


@pytest.mark.slow
def test_object_storage_is_read_like_a_disk(bucket: FileSystem) -> None:
    for name in ("raw/a.json", "raw/deep/b.jsonl", "raw/.hidden/c.json", "raw/notes.txt"):
        with bucket.open_output_stream(f"chats/{name}") as stream:
            stream.write(json.dumps([{"id": name}] if name.endswith("json") else {"id": name}).encode())
    assert expand_source("s3://chats/raw") == ["s3://chats/raw/a.json", "s3://chats/raw/deep/b.jsonl"]
    assert expand_source("s3://chats/raw/*.json") == ["s3://chats/raw/a.json"]
    assert expand_source("s3://chats/**/*.jsonl") == ["s3://chats/raw/deep/b.jsonl"]
    assert expand_source("s3://chats/raw/a.json") == ["s3://chats/raw/a.json"]
    assert values(list(read_records("s3://chats/raw/a.json"))) == [{"id": "raw/a.json"}]
    for missing in ("s3://chats/nowhere", "s3://chats/raw/*.parquet", "s3://nobucket/x.json"):
        with pytest.raises(DataError, match=re.escape(missing)):
            expand_source(missing)


@pytest.mark.parametrize("name", ["chats.json.gz", "chats.jsonl.zst", "chats.jsonl.gz", "chats.json.zst"])
def test_what_stands_before_the_damage_is_read(folder: Path, name: str) -> None:
    chats = [{"id": number, "text": random.Random(number).randbytes(40).hex()} for number in range(500)]
    in_array = ".jsonl" not in name
    lines = [json.dumps(chat).encode() for chat in chats]
    content = b"[" + b",".join(lines) + b"]" if in_array else b"\n".join(lines)
    if name.endswith(".gz"):
        packed, unpacked = gzip.compress(content), zlib.decompressobj(31)
        whole = unpacked.decompress(packed[: len(packed) // 2])
    else:
        packed = pyarrow.compress(content, "zstd", asbytes=True)
        whole = b""  # a block is lost as a whole
    found = read(folder, packed[: len(packed) // 2], name)
    assert values(found) == chats[: len(values(found))]
    assert len(values(found)) >= whole.count(b"}") - (whole.endswith(b"}") and not in_array)
    (error,) = errors(found)
    assert "the packed file is damaged" in error
    after = read(folder, packed + b"rubbish", f"longer-{name}")
    assert values(after) == chats[: len(values(after))]
    assert len(values(after)) >= len(chats) - name.endswith(".zst")  # of the piece with the damage nothing is given
    assert len(list(errors(after))) == 1


def test_a_cell_that_stands_for_no_value_costs_its_row(folder: Path) -> None:
    text = pa.array([b"a", b"\xff", b"c"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": text}), folder / "chats.parquet")
    records = list(read_records(str(folder / "chats.parquet")))
    assert values(records) == [{"id": "a"}, {"id": "c"}]
    assert "can't decode" in next(iter(errors(records)))
