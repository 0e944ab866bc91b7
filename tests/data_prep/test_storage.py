import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs

from data_prep import storage
from data_prep.errors import ModelError, VicunaError
from data_prep.storage import is_hub_id, local_model, open_filesystem, write_text, written_aside
from data_prep.tokenizer import fingerprint, load_tokenizer
from ray_apps.model_dir import local_model_dir
from tests.s3 import Bucket


def refusal(model: str) -> str:
    with pytest.raises(ModelError) as caught:
        local_model(model)
    assert model in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_directory_is_there_only_when_the_block_has_ended(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with written_aside(target) as aside:
        (aside / "part").write_text("whole")
        assert not target.exists()
        assert aside.parent == target.parent
    assert (target / "part").read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for name in ("old", "new"):
        with written_aside(target) as aside:
            (aside / name).mkdir()
            (aside / name / "part").write_text(name)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert (target / "new" / "part").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_error_nothing_is_left_and_the_old_content_stays(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "target"

    def fail() -> None:
        with written_aside(target) as aside:
            (aside / "part").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []
    target.mkdir()
    (target / "part").write_text("old")
    with pytest.raises(error):
        fail()
    assert (target / "part").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_two_writers_of_one_directory_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with written_aside(target) as first, written_aside(target) as second:
        (first / "a").write_text("first")
        (second / "b").write_text("second")
    assert [path.name for path in target.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [target]


@given(text=st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])))
def test_a_text_is_read_as_it_was_written(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    write_text(path, text)
    assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_that_cannot_be_written_whole_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(path: Path) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_text(path, "old")
    monkeypatch.setattr(storage, "flush", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_plain_path_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    filesystem, path = open_filesystem("chats/a.json")
    assert isinstance(filesystem, fs.LocalFileSystem)
    assert path == str(tmp_path / "chats" / "a.json")


@pytest.mark.parametrize(("path", "scheme"), [("gs://bucket/key", "gs"), ("https://host/x", "https"), ("://x", "")])
def test_an_unknown_scheme_is_refused(path: str, scheme: str) -> None:
    with pytest.raises(VicunaError) as caught:
        open_filesystem(path)
    assert str(caught.value) == f"{path}: unknown scheme {scheme!r}; valid: a local path or s3://bucket/key"


@pytest.mark.parametrize("model", ["org/name", "meta-llama/Llama-2-7b-hf", "a/b.c_d-1"])
def test_a_hub_id_is_an_organisation_and_a_name(model: str) -> None:
    assert is_hub_id(model)


@pytest.mark.parametrize("model", ["name", "./org/name", "/org/name", "org/name/more", "org/", "s3://a/b", "../x", ""])
def test_a_path_is_no_hub_id(model: str) -> None:
    assert not is_hub_id(model)


def test_a_model_directory_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert local_model(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert local_model(f"~/{tmp_path.name}") == tmp_path


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "nowhere")).endswith("no such directory")
    assert refusal(str(tmp_path)).endswith("the directory has no config.json")
    assert "the hub did not give it" in refusal("no-such-org/no-such-model")


@pytest.mark.slow
def test_a_model_on_s3_is_used_like_a_directory(bucket: Bucket, tiny_model_dir: Path) -> None:
    uri = bucket.upload(tiny_model_dir, "model")
    assert fingerprint(load_tokenizer(uri)) == fingerprint(load_tokenizer(str(tiny_model_dir)))
    copy = local_model_dir(f"{uri}/")
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == {
        file.name: file.read_bytes() for file in tiny_model_dir.iterdir()
    }


@pytest.mark.slow
def test_only_the_small_files_are_fetched_for_a_tokenizer(bucket: Bucket, tiny_model_dir: Path) -> None:
    uri = bucket.upload(tiny_model_dir, "model")
    assert not list(local_model(uri, storage.TOKENIZER_FILES).glob("*.safetensors"))


@pytest.mark.slow
def test_a_copy_is_made_once_and_again_when_a_file_has_changed(bucket: Bucket, tiny_model_dir: Path) -> None:
    uri = bucket.upload(tiny_model_dir, "model")
    before = local_model(uri)
    written = (before / "config.json").stat().st_mtime_ns
    assert local_model(uri) == before
    assert (before / "config.json").stat().st_mtime_ns == written
    bucket.write("model/config.json", json.dumps({"model_type": "llama", "changed": True}))
    after = local_model(uri)
    assert after != before
    assert json.loads((after / "config.json").read_text())["changed"]
    assert "changed" not in json.loads((before / "config.json").read_text())


@pytest.mark.slow
def test_a_copy_that_is_cut_off_is_not_used(
    bucket: Bucket, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(source: str, destination: str, *filesystems: fs.FileSystem) -> None:
        Path(destination).write_text("half")
        raise OSError("connection reset")

    uri = bucket.upload(tiny_model_dir, "model")
    with monkeypatch.context() as patch:
        patch.setattr(storage.fs, "copy_files", cut_off)
        assert refusal(uri).endswith("connection reset")
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert local_model_dir(uri).is_dir()


@pytest.mark.slow
def test_a_bucket_may_be_in_another_region_than_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    regions = {"far-away": "eu-west-3", "near": "us-east-1"}
    monkeypatch.setattr(storage.fs, "resolve_s3_region", regions.__getitem__)
    for bucket, region in regions.items():
        filesystem, inner = storage.open_filesystem(f"s3://{bucket}/some/key/")
        assert (filesystem.region, inner) == (region, f"{bucket}/some/key")


def test_what_is_not_on_s3_is_one_clear_line(bucket: Bucket) -> None:
    bucket.write("folder/notes.txt", "no model")
    assert "Path does not exist" in refusal(f"s3://{bucket.name}/nowhere")
    assert "NO_SUCH_BUCKET" in refusal("s3://no-such-bucket/model")
    assert refusal(f"s3://{bucket.name}/folder").endswith("there is no config.json at that path")
    assert refusal(f"s3://{bucket.name}//model")


def test_what_was_replaced_when_the_machine_died_comes_back(tmp_path: Path) -> None:
    """And only that of the same name goes."""
    for name in (".a.0123abcd.aside.old", ".a.0123abcd.aside", ".a.b.0123abcd.aside.old", ".a.b.0123abcd.aside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text(name)
    with pytest.raises(RuntimeError), written_aside(tmp_path / "a"):
        raise RuntimeError
    assert (tmp_path / "a" / "text").read_text() == ".a.0123abcd.aside.old"
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a", ".a.b.0123abcd.aside.old", ".a.b.0123abcd.aside"}


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("call", range(4))
def test_there_is_a_whole_target_whatever_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool, call: int
) -> None:
    target = tmp_path / "target"
    with written_aside(target) as directory:
        (directory / "text").write_text("old")
    rename, calls = Path.rename, iter(range(10))

    def failing(path: Path, other: Path) -> Path:
        if next(calls) == call:
            raise KeyboardInterrupt
        return rename(path, other)

    if not can_exchange:
        monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", failing)
    with suppress(KeyboardInterrupt), written_aside(target) as directory:
        (directory / "text").write_text("new")
    monkeypatch.undo()
    assert (target / "text").read_text() in ("old", "new")
    with written_aside(target) as directory:
        (directory / "text").write_text("newest")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_one_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with written_aside(target) as first, written_aside(target) as second:
        (first / "text").write_text("first")
        (second / "text").write_text("second")
    assert (target / "text").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
