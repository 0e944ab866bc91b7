import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import ConfigError, RunError
from data_prep.folder import Folder
from ray_apps.run_dir import MARKER, RunDir
from tests import s3
from tests.s3 import Bucket


def save(run: RunDir, step: int, keep_last: int = 9, **options: Any) -> Path:
    run.take_over("a1")
    return commit(run, step, begin(run, step), keep_last=keep_last, **options)


def begin(run: RunDir, step: int, writer: str = "a1") -> dict[str, Any]:
    """Write a checkpoint up to its marker; its files."""
    shard = b"weights" * step
    with run.begin_checkpoint(step, writer).writing("shard-0") as stream:
        stream.write(shard)
    return {"shard-0": {"bytes": len(shard), "sha256": hashlib.sha256(shard).hexdigest()}}


def commit(run: RunDir, step: int, files: dict[str, Any], writer: str = "a1", **options: Any) -> Path:
    return Path(run.commit_checkpoint(step, writer, files, **options).folder.path)


def names(run: RunDir) -> list[str]:
    return sorted(path.name for path in Path(run.checkpoints.path).iterdir())


def test_the_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.latest_checkpoint() is None
    save(run, 2)
    newest = save(run, 10)
    latest = run.latest_checkpoint()
    assert latest is not None
    assert (latest.step, Path(latest.folder.path)) == (10, newest)
    assert latest.damage() is None


@pytest.mark.parametrize("damage", ["truncated", "missing", "unmarked", "torn marker", "never committed"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    run = RunDir(tmp_path)
    save(run, 2)
    if damage == "never committed":
        begin(run, 4)
    else:
        bad = save(run, 4)
        if damage == "truncated":
            (bad / "shard-0").write_bytes(b"wei")
        elif damage == "missing":
            (bad / "shard-0").unlink()
        elif damage == "unmarked":
            (bad / MARKER).unlink()
        else:
            (bad / MARKER).write_text('{"files": {"sha')
    latest = run.latest_checkpoint()
    assert latest is not None
    assert latest.step == 2
    assert ("step-00000004 is incomplete" in caplog.text) == (damage != "never committed")


def test_a_changed_byte_is_seen(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    (save(run, 2) / "shard-0").write_bytes(b"weightsWEIGHTS")
    latest = run.latest_checkpoint()
    assert latest is not None
    assert latest.damage() == "shard-0 has another SHA-256 than when it was written"
    assert latest.damage([]) is None


def test_a_condemned_checkpoint_is_no_longer_complete(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    save(run, 2)
    save(run, 4)
    newest = run.latest_checkpoint()
    assert newest is not None
    run.condemn(newest, "shard-0 has another SHA-256")
    left = run.latest_checkpoint()
    assert left is not None
    assert left.step == 2
    (warning,) = run.read_metrics()
    assert warning["message"].endswith("is damaged (shard-0 has another SHA-256) and is passed over")
    save(run, 3, keep_last=1)  # the condemned one does not take its place
    assert [checkpoint.step for checkpoint in run.complete_checkpoints()] == [3]


def test_only_the_newest_are_kept_and_remains_are_removed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.take_over("a0")
    begin(run, 1, "a0")
    for step in (2, 4, 6):
        save(run, step, keep_last=2)
    assert names(run) == ["step-00000004", "step-00000006"]


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step, loss in ((2, 0.5), (4, 0.3), (6, 0.4), (8, None), (10, 0.9)):
        save(run, step, keep_last=1, keep_best=1, eval_loss=loss)
    assert names(run) == ["step-00000004", "step-00000010"]
    best = run.best_checkpoint()
    assert best is not None
    assert (best.step, best.eval_loss) == (4, 0.3)


def test_a_run_made_of_something_else_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.check_receipt({"learning_rate": 1e-4, "model": "a"})
    run.check_receipt({"learning_rate": 1e-4, "model": "a"})
    with pytest.raises(RunError, match=r"other settings: learning_rate \(0.0001 → 0.001\)"):
        run.check_receipt({"learning_rate": 1e-3, "model": "a"})


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.append_metrics({"step": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2})[:-3])
    assert run.read_metrics() == [{"step": 1}]


def test_a_line_after_a_torn_one_is_whole(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.append_metrics({"step": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    run.append_metrics({"event": "launch"})
    assert run.read_metrics() == [{"step": 1}, {"event": "launch"}]


def test_what_is_no_run_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis' has no receipt.json: it is not ours to replace"):
        RunDir("~/thesis").remove()
    assert (tmp_path / "thesis" / "thesis.txt").exists()
    RunDir(tmp_path / "nothing").remove()
    RunDir(tmp_path / "run").check_receipt({"seed": 1})
    RunDir(tmp_path / "run").remove()
    assert not (tmp_path / "run").exists()
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".receipt.json.1f3a.aside").write_text("{")  # in the middle of its very first file
    RunDir(tmp_path / "killed").check_replaceable()


def test_on_s3_what_is_no_run_is_not_removed(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.variables(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    place = RunDir(f"{Bucket(s3_endpoint, tmp_path.name).uri}/team")
    (place.folder / "bases").write("config.json", "{}")
    with pytest.raises(ConfigError, match="it is not ours to replace"):
        place.remove()
    assert (place.folder / "bases").read("config.json") == "{}"


def test_a_complete_checkpoint_stays_complete_if_an_old_one_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(tmp_path)
    save(run, 10)
    monkeypatch.setattr(Folder, "move_file", refuse)
    save(run, 20, keep_last=1)
    assert [checkpoint.step for checkpoint in run.complete_checkpoints()] == [20, 10]
    assert "an old checkpoint cannot be removed: it is busy" in caplog.text


def test_a_run_killed_while_it_is_removed_is_still_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path / "run")
    run.check_receipt({"seed": 1})
    run.append_metrics({"event": "launch"})
    save(run, 10)
    remove, removed = Folder.remove, list[str]()

    def killed_at_the_last(folder: Folder) -> None:
        if folder.place == run.folder.place:
            raise KeyboardInterrupt
        removed.append(folder.place)
        remove(folder)

    monkeypatch.setattr(Folder, "remove", killed_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        run.remove()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["receipt.json"]
    run.check_replaceable()


def refuse(folder: Folder, name: str, to: str) -> None:
    raise OSError("it is busy")


def test_what_a_run_began_with_may_change(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.check_receipt({"seed": 1}, {"torch": "2.13"})
    run.check_receipt({"seed": 1}, {"torch": "2.14"})
    assert run.read_receipt() == {"seed": 1, "environment": {"torch": "2.13"}}
    with pytest.raises(RunError, match="seed"):
        run.check_receipt({"seed": 2}, {"torch": "2.13"})


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a run may be."""
    if request.param == "disk":
        return str(tmp_path / "run")
    endpoint = request.getfixturevalue("s3_endpoint")
    for name, value in s3.variables(endpoint).items():
        monkeypatch.setenv(name, value)
    return f"{Bucket(endpoint, tmp_path.name).uri}/run"


def folders(run: RunDir) -> list[str]:
    return sorted(name.split("-a1")[0] for name in run.checkpoints.folders())


def test_who_has_lost_the_run_commits_and_removes_nothing(place: str) -> None:
    old, new = RunDir(place), RunDir(place)
    save(old, 2, keep_last=1)
    files = begin(old, 4)
    new.take_over("launch", "b2")
    mine = begin(new, 3, "b2")
    with pytest.raises(OSError, match=r"/run was taken over by process \d+ on \S+$"):
        commit(old, 4, files)
    with pytest.raises(OSError, match="was taken over"):
        old.begin_checkpoint(6, "a1")
    assert [checkpoint.step for checkpoint in new.complete_checkpoints()] == [2]
    commit(new, 3, mine, "b2")
    assert [checkpoint.step for checkpoint in new.complete_checkpoints()] == [3, 2]


def test_one_that_looked_just_before_it_was_too_late_does_no_harm(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others take over between its look and its commit, and remove what it has written as remains."""
    old, new = RunDir(place), RunDir(place)
    save(old, 2, keep_last=1)
    files = begin(old, 4)
    write = Folder.write

    def late(folder: Folder, name: str, text: str) -> None:
        if name == MARKER:
            monkeypatch.setattr(Folder, "write", write)
            new.take_over("launch", "b2")
            new.begin_checkpoint(3, "b2")
        write(folder, name, text)

    monkeypatch.setattr(Folder, "write", late)
    try:
        commit(old, 4, files, keep_last=1)
    except FileNotFoundError:
        assert not old.folder.is_remote
    assert [checkpoint.step for checkpoint in new.complete_checkpoints()] == [2]
    commit(new, 3, begin(new, 3, "b2"), "b2")
    assert [checkpoint.step for checkpoint in new.complete_checkpoints()] == [3, 2]
    assert len(new.checkpoints.folders()) == 2


def test_what_others_complete_is_not_taken_for_remains(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take over and save between one's look at what is there and its removal of what is incomplete."""
    old, new = RunDir(place), RunDir(place)
    save(old, 2)
    list_folders = Folder.folders

    def late(folder: Folder) -> list[str]:
        found = list_folders(folder)
        monkeypatch.setattr(Folder, "folders", list_folders)
        new.take_over("launch", "b2")
        commit(new, 4, begin(new, 4, "b2"), "b2")
        return found

    monkeypatch.setattr(Folder, "folders", late)
    old.begin_checkpoint(4, "a1")
    assert [checkpoint.step for checkpoint in new.complete_checkpoints()] == [4, 2]


def test_what_others_complete_while_remains_are_removed_stays(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = RunDir(place), RunDir(place)
    new.take_over("launch", "b2")
    files = begin(new, 4, "b2")
    new.aside(2, "a1").make()
    new.aside(2, "a1").write("shard-0", "weights")
    monkeypatch.setattr(old, "_check_writer", lambda writer: None)  # it has looked before
    remove = Folder.remove

    def late(folder: Folder) -> None:
        monkeypatch.setattr(Folder, "remove", remove)
        commit(new, 4, files, "b2")
        remove(folder)

    monkeypatch.setattr(Folder, "remove", late)
    old.begin_checkpoint(6, "a1")
    assert [checkpoint.step for checkpoint in new.complete_checkpoints()] == [4]


def test_a_run_that_was_removed_is_lost_to_its_writer(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.check_receipt({"seed": 1})
    save(run, 2)
    files = begin(run, 4)
    RunDir(run.folder.place).remove()
    with pytest.raises(OSError, match="was removed, or is not seen by"):
        commit(run, 4, files)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_one_of_its_files_is_not_marked(place: str) -> None:
    run = RunDir(place)
    run.take_over("a1")
    files = {**begin(run, 4), "shard-1": {"bytes": 9, "sha256": ""}}
    with pytest.raises(OSError, match="shard-1 is missing"):
        commit(run, 4, files)
    files = {"shard-0": {"bytes": 27, "sha256": ""}}
    with pytest.raises(OSError, match="shard-0 has 28 bytes instead of 27"):
        commit(run, 4, files)
    assert run.complete_checkpoints() == []


def test_a_complete_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    first = save(run, 4, eval_loss=0.5)
    known = (first / MARKER).stat().st_ino
    assert save(run, 4) == first
    assert (first / MARKER).stat().st_ino == known
    assert names(run) == ["step-00000004"]


def test_what_is_not_complete_makes_room_and_what_is_damaged_stays(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    (save(run, 2) / "shard-0").unlink()
    save(run, 4)
    damaged = run.latest_checkpoint()
    assert damaged is not None
    run.condemn(damaged, "shard-0 has another SHA-256")
    (tmp_path / "checkpoints" / "step-00000002-copied by hand").mkdir()
    save(run, 6)
    assert names(run) == ["step-00000002-copied by hand", "step-00000004", "step-00000006"]
    save(run, 4)  # made again
    assert [checkpoint.step for checkpoint in run.complete_checkpoints()] == [6, 4]


def test_who_has_lost_a_run_cannot_stop_it(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path / "run"))
    run.folder.make()
    run.take_over("first")
    run.ask_to_stop("first")
    assert run.is_asked_to_stop()
    run.take_over("second")
    run.forget_to_stop()
    run.ask_to_stop("first")
    assert not run.is_asked_to_stop()
    run.ask_to_stop()
    assert run.is_asked_to_stop()
