"""Real disks and a real S3 service: what can be written, read and deleted, and that nothing stays behind."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_apps.doctor import storage
from ray_apps.doctor.check import Check
from ray_apps.doctor.storage import check_storage, probe_folder, read_shard
from ray_apps.doctor.workers import LocalWorkers
from tests.s3 import Bucket

pytestmark = pytest.mark.slow
GB = 10**9


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    with LocalWorkers(2) as workers:
        yield workers


@pytest.fixture
def fresh_workers() -> Iterator[LocalWorkers]:
    """Workers that may be spoiled."""
    with LocalWorkers(2) as workers:
        yield workers


def check(path: Path | str, workers: LocalWorkers, needed: int = 0) -> Check:
    (found,) = check_storage({"train.run_dir": str(path)}, {"train.run_dir": needed}, workers)
    return found


def fill_the_disk(rank: int, world_size: int) -> None:
    """The kernel's limit on the size of a file stands for the full disk."""
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def lose_rights(rank: int, world_size: int) -> None:
    """Become a user for whom rights count."""
    if os.getuid() == 0:
        os.setuid(65534)


def see_another_disk(rank: int, world_size: int) -> None:
    """Writes of rank 1 land elsewhere, as where a folder is not shared."""
    if rank == 1:
        right = storage.open_filesystem
        storage.open_filesystem = lambda path: (right(path)[0], f"{right(path)[1]}-elsewhere")


def flip_bits(rank: int, world_size: int) -> None:
    if rank == 1:
        right = read_shard
        storage.read_shard = lambda *arguments: {**right(*arguments), "checksum": "other"}


def test_a_disk_has_figures_and_is_left_as_it_was(workers: LocalWorkers, tmp_path: Path) -> None:
    found = check(tmp_path / "run" / "deep", workers, needed=1000)
    assert found.status == "ok", found
    assert found.measures["write_mb_per_s"] > 0
    assert found.measures["read_mb_per_s"] > 0
    assert 0 < found.measures["commit_s"] < 10
    assert found.measures["free_bytes"] > 0
    assert found.found.startswith(f"{tmp_path}/run/deep: write ")
    assert list(tmp_path.iterdir()) == []


def test_what_lies_there_stays(workers: LocalWorkers, tmp_path: Path) -> None:
    (tmp_path / "receipt.json").write_text("{}")
    assert check(tmp_path, workers).status == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["receipt.json"]


def test_too_little_room_is_told_before_the_run(workers: LocalWorkers, tmp_path: Path) -> None:
    found = check(tmp_path, workers, needed=10**18)
    assert found.status == "problem"
    assert found.advice.startswith("free 9")
    assert found.measures["needed_bytes"] == 10**18


def test_checkpoints_that_are_there_need_no_more_room(workers: LocalWorkers, tmp_path: Path) -> None:
    with (tmp_path / "shard").open("wb") as file:
        file.truncate(10**12)
    assert check(tmp_path, workers, needed=10**12).status == "ok"


def test_fields_in_one_folder_are_checked_together(workers: LocalWorkers, tmp_path: Path) -> None:
    paths = {"train.run_dir": str(tmp_path / "run"), "train.output": str(tmp_path / "model")}
    (found,) = check_storage(paths, {"train.run_dir": 3, "train.output": 4}, workers)
    assert found.name == "train.run_dir, train.output"
    assert found.measures["needed_bytes"] == 7


def test_a_full_disk_is_told(fresh_workers: LocalWorkers, tmp_path: Path) -> None:
    fresh_workers.run(fill_the_disk, timeout_s=60)
    found = check(tmp_path, fresh_workers)
    assert found.status == "problem"
    assert found.found.startswith(f"writing: rank 1 ({fresh_workers.nodes[1]}): ")
    assert "File too large" in found.found
    assert found.advice == "free some space, or choose another place for train.run_dir"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_is_told(fresh_workers: LocalWorkers, tmp_path: Path) -> None:
    fresh_workers.run(lose_rights, timeout_s=60)
    tmp_path.chmod(0o555)
    found = check(tmp_path, fresh_workers)
    tmp_path.chmod(0o755)
    assert found.status == "problem"
    assert "Permission denied" in found.found
    assert found.advice.startswith("let this user write there from every node")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_shared_is_told(fresh_workers: LocalWorkers, tmp_path: Path) -> None:
    fresh_workers.run(see_another_disk, timeout_s=60)
    found = check(tmp_path, fresh_workers)
    assert found.status == "problem"
    assert found.found == "this machine does not see what the workers wrote"
    assert found.advice.startswith("mount one folder on every node")


def test_other_bytes_than_were_written_are_told(fresh_workers: LocalWorkers, tmp_path: Path) -> None:
    fresh_workers.run(flip_bits, timeout_s=60)
    found = check(tmp_path, fresh_workers)
    assert found.status == "problem"
    assert found.found == f"rank 1 ({fresh_workers.nodes[1]}) read other bytes than rank 0 wrote"
    assert list(tmp_path.iterdir()) == []


def test_object_storage_has_figures_and_is_left_as_it_was(bucket: Bucket, fresh_workers: LocalWorkers) -> None:
    found = check(f"{bucket.uri}/runs/first/", fresh_workers, needed=3 * GB)
    assert found.status == "ok", found
    assert found.found.endswith("; 3 GB will be written")
    assert found.measures["write_mb_per_s"] > 0
    assert bucket.list_keys() == []


def test_objects_that_lie_there_stay(bucket: Bucket, fresh_workers: LocalWorkers) -> None:
    bucket.write("runs/other/shard")
    assert check(f"{bucket.uri}/runs/first", fresh_workers).status == "ok"
    assert bucket.list_keys() == ["runs", "runs/other", "runs/other/shard"]


def test_a_bucket_that_is_not_there_is_told(bucket: Bucket, fresh_workers: LocalWorkers) -> None:
    found = check("s3://no-such-bucket/run", fresh_workers)
    assert found.status == "problem"
    assert "bucket" in found.found.lower()


def test_a_service_that_does_not_answer_is_told(
    bucket: Bucket, fresh_workers: LocalWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    found = check(f"{bucket.uri}/run", fresh_workers)
    assert found.status == "problem"
    assert "\n" not in found.found


def test_another_scheme_is_told(workers: LocalWorkers) -> None:
    assert "unknown scheme 'gs'" in check("gs://bucket/run", workers).found


def test_the_folder_is_the_nearest_that_is_there(tmp_path: Path) -> None:
    assert Path(probe_folder(str(tmp_path / "a" / "b"))).parent == tmp_path
    assert probe_folder("s3://bucket/run/").startswith("s3://bucket/run/.vicuna-doctor-")
