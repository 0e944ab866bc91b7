import json
from pathlib import Path

import pytest

from data_prep.errors import RunError
from ray_apps.run_dir import MARKER, RunDir


def save(run: RunDir, step: int, keep_last: int = 9) -> Path:
    aside = run.begin_checkpoint(step)
    (aside / "shard-0").write_bytes(b"weights" * step)
    return run.commit_checkpoint(step, keep_last)


def test_the_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.latest_checkpoint() is None
    save(run, 2)
    newest = save(run, 10)
    assert run.latest_checkpoint() == (10, newest)


@pytest.mark.parametrize("damage", ["truncated", "missing", "unmarked", "torn marker", "never committed"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    run = RunDir(tmp_path)
    good = save(run, 2)
    if damage == "never committed":
        (run.begin_checkpoint(4) / "shard-0").write_bytes(b"half")
        assert run.latest_checkpoint() == (2, good)
        return
    bad = save(run, 4)
    if damage == "truncated":
        (bad / "shard-0").write_bytes(b"wei")
    elif damage == "missing":
        (bad / "shard-0").unlink()
    elif damage == "unmarked":
        (bad / MARKER).unlink()
    else:
        (bad / MARKER).write_text('{"files": {"sha')
    assert run.latest_checkpoint() == (2, good)
    assert "step-00000004 is incomplete" in caplog.text


def test_only_the_newest_are_kept_and_remains_are_removed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    (run.begin_checkpoint(1) / "shard-0").write_bytes(b"half")
    for step in (2, 4, 6):
        save(run, step, keep_last=2)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-00000004", "step-00000006"]


def test_a_run_made_of_something_else_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.check_receipt({"learning_rate": 1e-4, "model": "a"})
    run.check_receipt({"learning_rate": 1e-4, "model": "a"})
    with pytest.raises(RunError, match=r"other settings: learning_rate \(0.0001 → 0.001\)"):
        run.check_receipt({"learning_rate": 1e-3, "model": "a"})


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.append_metrics({"step": 1})
    with run.metrics.open("a") as file:
        file.write(json.dumps({"step": 2})[:-3])
    assert run.read_metrics() == [{"step": 1}]
