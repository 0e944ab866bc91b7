"""Where models are written to: seen whole or not at all, whatever ends the command."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Set
from pathlib import Path

import pytest
import torch
from pyarrow import fs

from data_prep.errors import ConfigError, ModelError
from data_prep.folder import Folder
from ray_apps.weights import output as output_module
from ray_apps.weights.tensor_files import TensorFiles
from tests import s3, tiny
from tests.ray_apps.weights import models
from tests.ray_apps.weights.published import llama, write_hub, write_meta
from tests.ray_apps.weights.test_delta import read, run
from tests.s3 import Bucket

LARGE = {f"layers.{number}.weight": torch.arange(2**22, dtype=torch.float32) * (number + 1) for number in range(4)}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("disks are mounted by root alone")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("command", ["to-safetensors", "make-delta", "quantize"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, small_disk: Path, command: str) -> None:
    small = models.write(tmp_path / "small", models.tensors(1))
    output = small_disk / "output"
    run("to-safetensors", small, str(output))
    before = {path: path.read_bytes() for path in output.iterdir()}
    large = models.write(tmp_path / "large", LARGE)
    given = {"to-safetensors": [large], "make-delta": [large, large]}.get(command, [])
    if command == "quantize":
        given = [str(tiny.write_model(tmp_path / "model", hidden_size=512)), "--to", "int8"]
    with pytest.raises(OSError, match=r"No space left on device; nothing was written: '.*/output'"):
        run(command, *given, str(output))
    assert {path: path.read_bytes() for path in output.iterdir()} == before
    assert list(small_disk.iterdir()) == [output]


def test_a_killed_command_leaves_what_was_there_and_its_rest_goes_with_the_next(tmp_path: Path) -> None:
    small = models.write(tmp_path / "small", models.tensors(1))
    large = models.write(tmp_path / "large", LARGE)
    base = models.write(tmp_path / "base", {name: tensor + 0.5 for name, tensor in LARGE.items()})
    output = tmp_path / "output"
    run("to-safetensors", small, str(output))
    before = {path: path.read_bytes() for path in output.iterdir()}
    words = ["weights", "make-delta", base, large, str(output), "--exact"]
    process = subprocess.Popen([sys.executable, "-m", "ray_apps.cli", *words], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob(".output.*.aside/exact-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob(".output.*.aside"))
    assert {path: path.read_bytes() for path in output.iterdir()} == before
    run(*words[1:])
    run("apply-delta", base, str(output), str(tmp_path / "again"))
    assert all(torch.equal(tensor, LARGE[name]) for name, tensor in read(tmp_path / "again").items())
    assert {path.name for path in tmp_path.iterdir()} == {"small", "large", "base", "output", "again"}


def test_s3_is_read_and_written(bucket: Bucket, tmp_path: Path) -> None:
    base = bucket.upload(Path(models.write(tmp_path / "base", models.tensors(1), "bin-shards")), "base")
    target = models.write(tmp_path / "target", models.tensors(2), name="target")
    delta, again = f"{bucket.uri}/deltas/target", f"{bucket.uri}/again"
    for _ in range(2):  # the second takes the place of the first
        run("make-delta", base, target, delta, "--exact")
        run("apply-delta", base, delta, again)
    assert "5 tensors are the same bit for bit, 0 differ" in run("inspect", target, again)
    assert [key for key in bucket.list_keys() if key.startswith("again/")] == [
        f"again/{name}"
        for name in ("config.json", "model.safetensors", "origin.json", "tokenizer.model", "tokenizer_config.json")
    ]
    assert not [key for key in bucket.list_keys() if "aside" in key]
    run("to-safetensors", target, delta)  # nothing of the exact delta stays
    assert not [key for key in bucket.list_keys() if "exact" in key]
    assert list((tmp_path / "cache" / "vicuna-ray" / "models" / "outputs").iterdir()) == []


def test_what_is_not_ours_on_s3_stays(bucket: Bucket, tmp_path: Path) -> None:
    model = models.write(tmp_path / "model", models.tensors(1))
    bucket.write("notes/text", "kept")
    with pytest.raises(ConfigError, match=r"output: 's3://.*/notes' was not written by `vicuna weights`"):
        run("to-safetensors", model, f"{bucket.uri}/notes")
    with pytest.raises(ConfigError, match=r"output: 's3://.*' is not valid; expected s3://bucket/key"):
        run("to-safetensors", model, bucket.uri)
    with pytest.raises(ConfigError, match=r"output: there is no bucket 'no-such-bucket'"):
        run("to-safetensors", model, "s3://no-such-bucket/model")


def test_a_copy_to_s3_that_breaks_leaves_what_was_there(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = models.write(tmp_path / "small", models.tensors(1))
    uri = f"{bucket.uri}/model"
    run("to-safetensors", small, uri)
    before = bucket.list_keys()
    copy = fs.copy_files

    def breaks(source: str, target: str, *filesystems: fs.FileSystem, **options: object) -> None:
        copy(source, target, *filesystems, **options)
        if ".aside" in target and not target.startswith("/"):
            raise OSError("the network is gone")

    monkeypatch.setattr(fs, "copy_files", breaks)
    other = models.write(tmp_path / "other", models.tensors(2))
    with pytest.raises(OSError, match="the network is gone"):
        run("to-safetensors", other, uri)
    assert bucket.list_keys() == before
    assert all(torch.equal(tensor, models.tensors(1)[name]) for name, tensor in TensorFiles(uri).stream())


@pytest.mark.parametrize("num_moved", [0, 1, 4])
def test_a_model_that_is_half_replaced_on_s3_is_no_model_until_the_command_is_run_again(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_moved: int
) -> None:
    uri = f"{bucket.uri}/model"
    run("to-safetensors", models.write(tmp_path / "small", models.tensors(1)), uri)
    other = models.write(tmp_path / "other", models.tensors(2))
    moved: list[str] = []

    class Breaking:
        """The service, until so many files have been moved."""

        def __init__(self, filesystem: fs.FileSystem) -> None:
            self._filesystem = filesystem

        def __getattr__(self, name: str) -> object:
            return getattr(self._filesystem, name)

        def move(self, source: str, target: str) -> None:
            if len(moved) == num_moved:
                raise OSError("the network is gone")
            moved.append(target)
            self._filesystem.move(source, target)

    move = output_module._move

    def breaking(aside: str, target: Folder, names: Set[str]) -> None:
        target.filesystem = Breaking(target.filesystem)
        move(aside, target, names)

    monkeypatch.setattr(output_module, "_move", breaking)
    with pytest.raises(OSError, match=r"half replaced: the network is gone; what is missing is in s3://.*\.aside; run"):
        run("to-safetensors", other, uri)
    with pytest.raises(ModelError, match=r"there is no config\.json at that path"):
        TensorFiles(uri)
    assert any(".aside" in key for key in bucket.list_keys())
    monkeypatch.undo()
    for name, value in {**s3.variables(bucket.endpoint), "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    run("to-safetensors", other, uri)
    assert all(torch.equal(tensor, models.tensors(2)[name]) for name, tensor in TensorFiles(uri).stream())


def test_what_a_command_reads_or_did_not_write_is_not_replaced(tmp_path: Path) -> None:
    base = models.write(tmp_path / "base", models.tensors(1))
    own = tmp_path / "own"
    run("to-safetensors", base, str(own))
    run("to-safetensors", base, str(own / "inner"))
    with pytest.raises(ConfigError, match=r"output: .*own' is or holds .*inner', of which it is made"):
        run("to-safetensors", str(own / "inner"), str(own))
    with pytest.raises(ConfigError, match=r"output: .*own' is or holds .*own', of which it is made"):
        run("make-delta", str(own), base, str(own))
    with pytest.raises(ConfigError, match=r"output: .*own' holds 'inner', which was not written with it"):
        run("to-safetensors", base, str(own))
    for wrong in ("", "/", "~no-such-user/x", "s3://bucket//key", "s3://"):
        with pytest.raises(ConfigError, match=r"output: "):
            run("to-safetensors", base, wrong)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    base = models.write(tmp_path / "base", models.tensors(1))
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        run("to-safetensors", base, str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"base", "link", "real"}


def test_files_that_may_not_be_written_are_copied(tmp_path: Path, sentences: Path) -> None:
    model = llama()
    old = Path(write_hub(tmp_path / "old", dict(model.state_dict()), model.config, sentences, "bin"))
    for path in old.iterdir():
        path.chmod(0o444)
    run("to-safetensors", str(old), str(tmp_path / "output"), "--template", "vicuna_v1.1")
    assert (tmp_path / "output" / "config.json").stat().st_mode & 0o200


@pytest.mark.slow
def test_the_memory_is_that_of_a_tensor_and_not_of_the_file(tmp_path: Path) -> None:
    """A file of half a GB is mapped, and given back on the way."""
    weights = {f"layers.{number}.weight": torch.full((2**24,), number, dtype=torch.float16) for number in range(16)}
    model = models.write(tmp_path / "model", weights, "bin")
    program = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    )

    def peak(*words: str) -> int:
        command = [sys.executable, "-c", program, sys.executable, "-m", "ray_apps.cli", "weights", *words]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    small = models.write(tmp_path / "small", models.tensors(1), "bin")
    idle = peak("to-safetensors", small, str(tmp_path / "one"))
    assert peak("to-safetensors", model, str(tmp_path / "other")) - idle < 300e6


def test_meta_s_files_may_lie_on_s3(bucket: Bucket, tmp_path: Path, sentences: Path) -> None:
    write_meta(tmp_path / "llama" / "7B", llama(), 2, sentences)
    (tmp_path / "llama" / "tokenizer.model").rename(tmp_path / "llama" / "7B" / "tokenizer.model")
    run("convert-llama", bucket.upload(tmp_path / "llama" / "7B", "LLaMA/7B"), str(tmp_path / "one"))
    (tmp_path / "llama" / "7B" / "tokenizer.model").rename(tmp_path / "llama" / "tokenizer.model")
    bucket.upload(tmp_path / "llama", "above")
    run("convert-llama", f"{bucket.uri}/above/7B", str(tmp_path / "two"))
    assert (tmp_path / "two" / "tokenizer.model").exists()
    run("convert-llama", str(tmp_path / "llama" / "7B"), str(tmp_path / "other"))
    assert ", 0 differ" in run("inspect", str(tmp_path / "one"), str(tmp_path / "other"))


def test_hub_ids_are_read_from_the_cache_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = "0" * 40
    place = tmp_path / "hub" / "models--lmsys--vicuna-7b-delta-v1.1"
    models.write(place / "snapshots" / revision, models.tensors(2), "bin-shards")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base = models.write(tmp_path / "base", models.tensors(1))
    run("apply-delta", base, "lmsys/vicuna-7b-delta-v1.1", str(tmp_path / "vicuna"))
    made = read(tmp_path / "vicuna")
    assert all(torch.equal(made[name], tensor + models.tensors(2)[name]) for name, tensor in models.tensors(1).items())


def test_what_is_read_or_was_not_written_here_stays_on_s3(bucket: Bucket, tmp_path: Path) -> None:
    base = models.write(tmp_path / "base", models.tensors(1))
    uri = f"{bucket.uri}/model"
    run("to-safetensors", base, uri)
    with pytest.raises(ConfigError, match=r"output: 's3://.*/model' is or holds 's3://.*/model/', of which it is made"):
        run("make-delta", f"{uri}/", base, uri)
    bucket.write("model/notes.txt")
    with pytest.raises(ConfigError, match=r"output: .* holds 'notes.txt', which was not written with it"):
        run("to-safetensors", base, uri)


def test_a_trained_model_and_a_place_of_its_own_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    base = models.write(tmp_path / "base", models.tensors(1))
    trained = Path(models.write(tmp_path / "trained", models.tensors(2)))
    (trained / "origin.json").write_text('{"step": 40}')
    with pytest.raises(ConfigError, match=r"output: .*trained' was not written by `vicuna weights`"):
        run("to-safetensors", base, str(trained))
    with pytest.raises(ConfigError, match="or a disk of its own; take a directory within it"):
        run("to-safetensors", base, str(small_disk))
    monkeypatch.setenv("HOME", str(tmp_path))
    run("to-safetensors", base, "~/own")
    with pytest.raises(ConfigError, match=r"is or holds '~/own', of which it is made"):
        run("make-delta", "~/own", base, "~/own")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="is where you are"):
        run("to-safetensors", base, ".")
