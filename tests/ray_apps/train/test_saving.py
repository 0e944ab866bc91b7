"""What the loop does between two steps: notices, requests to stop, saves beside the training."""

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from data_prep.errors import RunError
from ray_apps.run_dir import RunDir
from ray_apps.train.checkpoint import Saver
from ray_apps.train.config import TrainConfig
from ray_apps.train.errors import SavesFailed
from ray_apps.train.loop import run_training, train_step
from ray_apps.train.saving import Notice
from tests.processes import CPU, run_ranks
from tests.ray_apps.train.test_loop import exported, losses


def events(config: TrainConfig, name: str) -> list[dict[str, Any]]:
    return [record for record in RunDir(config.run_dir).read_metrics() if record.get("event") == name]


def test_saving_beside_the_training_changes_nothing(
    make_config: Callable[..., TrainConfig], process_group: None, tmp_path: Path
) -> None:
    weights = []
    for asynchronous in (True, False):
        config = make_config(
            max_steps=6,
            run_dir=str(tmp_path / f"run-{asynchronous}"),
            output=str(tmp_path / f"model-{asynchronous}"),
            checkpoint={"every_steps": 1, "asynchronous": asynchronous, "keep_last": 9},
        )
        run_training(config, CPU)
        assert [record["step"] for record in events(config, "checkpoint")] == [1, 2, 3, 4, 5, 6]
        checkpoints = RunDir(config.run_dir).complete_checkpoints()
        assert [checkpoint.damage() for checkpoint in checkpoints] == [None] * 6
        for newer in checkpoints[:3]:
            newer.folder.remove()
        weights.append(exported(config))  # of step 3: what was copied is not what training went on with
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_notice_is_answered_with_one_checkpoint(make_config: Callable[..., TrainConfig], process_group: None) -> None:
    config = make_config(max_steps=8, checkpoint={"every_steps": 100, "preemption_poll_s": 0})
    polls = 0

    def notice() -> Notice | None:
        nonlocal polls
        polls += 1
        return Notice(time.time() // 3600 * 3600 + 7200, (0,)) if polls >= 3 else None

    run_training(config, CPU, notice=notice)
    assert polls == 8
    assert [record["step"] for record in events(config, "checkpoint")] == [3, 8]
    (heeded,) = events(config, "notice")
    assert (heeded["step"], heeded["ranks"], heeded["saved"]) == (3, [0], True)
    assert len(losses(config)) == 8  # training went on


@pytest.mark.slow
def test_before_the_deadline_there_is_a_last_checkpoint_and_no_step_after_it(
    make_config: Callable[..., TrainConfig], process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_apps.train.saving.TAKEN_LATE_S", 0.5)
    config = make_config(max_steps=120, epochs=99, checkpoint={"every_steps": 1000, "preemption_poll_s": 0})
    polls, deadline = 0, 0.0

    def notice() -> Notice | None:
        nonlocal polls, deadline
        polls += 1
        deadline = deadline or (time.time() + 2 if polls == 3 else 0.0)
        return Notice(deadline, (0,)) if deadline else None

    run_training(config, CPU, notice=notice)
    first, last, end = (record["step"] for record in events(config, "checkpoint"))
    assert (first, end) == (3, 120)
    assert 3 < last < 120
    done = {record["step"]: record["time"] for record in RunDir(config.run_dir).read_metrics() if "loss" in record}
    assert done[last] < deadline < deadline + 0.5 <= done[last + 1]  # the machine was not taken: it went on


class Clock:
    """Stands for the module `time`: it goes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("noticed_at", "left_s", "saved"),
    [
        (12, 90.0, [12, 19, 30]),  # step 20 and its evaluation would take 101 s
        (12, 500.0, [12, 30]),
        (3, 90.0, [3, 9, 30]),  # how long an evaluation takes is not known
    ],
)
def test_before_the_deadline_an_evaluation_is_allowed_for(
    make_config: Callable[..., TrainConfig],
    process_group: None,
    monkeypatch: pytest.MonkeyPatch,
    noticed_at: int,
    left_s: float,
    saved: list[int],
) -> None:
    clock, polls, deadline = Clock(), 0, 0.0
    monkeypatch.setattr("ray_apps.train.saving.time", clock)

    def step(*arguments: Any) -> dict[str, float]:
        clock.sleep(1.0)
        return train_step(*arguments)

    def evaluate(*arguments: Any, **options: Any) -> float:
        clock.sleep(100.0)
        return 1.0

    def notice() -> Notice | None:
        nonlocal polls, deadline
        polls += 1
        if polls == noticed_at:
            deadline = clock.now + left_s
        return Notice(deadline, (0,)) if deadline else None

    monkeypatch.setattr("ray_apps.train.loop.train_step", step)
    monkeypatch.setattr("ray_apps.train.loop.held_out_loss", evaluate)
    config = make_config(
        max_steps=30, epochs=99, eval_every_steps=10, checkpoint={"every_steps": 1000, "preemption_poll_s": 0}
    )
    run_training(config, CPU, notice=notice)
    assert [record["step"] for record in events(config, "checkpoint")] == saved


def test_a_deadline_that_cannot_be_met_leaves_the_last_checkpoint(
    make_config: Callable[..., TrainConfig], process_group: None
) -> None:
    config = make_config(max_steps=6, checkpoint={"every_steps": 2, "preemption_poll_s": 0})
    deadline = time.time() - 1
    run_training(config, CPU, notice=lambda: Notice(deadline, (0,)))
    assert [record["step"] for record in events(config, "checkpoint")] == [2, 4, 6]
    assert [record["saved"] for record in events(config, "notice")] == [False]


@pytest.mark.parametrize("asked_by", ["signal", "run directory"])
def test_a_run_that_is_asked_to_stop_saves_and_ends(
    make_config: Callable[..., TrainConfig],
    process_group: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    asked_by: str,
) -> None:
    monkeypatch.setattr("ray_apps.train.saving.LOOK_S", 0.0)
    config = make_config(max_steps=6, checkpoint={"every_steps": 100, "preemption_poll_s": 0})
    run, polls = RunDir(config.run_dir), 0

    def ask() -> None:
        nonlocal polls
        polls += 1
        if polls == 3:
            os.kill(os.getpid(), signal.SIGTERM) if asked_by == "signal" else run.ask_to_stop()

    run_training(config, CPU, notice=ask)
    latest = run.latest_checkpoint()
    assert latest is not None
    stopped_at = 3 if asked_by == "signal" else 4
    assert latest.step in (stopped_at, stopped_at + 1)
    assert run.read_metrics()[-1]["event"] == "stopped"
    run.forget_to_stop()
    run_training(config, CPU)
    whole = make_config(max_steps=6, run_dir=str(tmp_path / "whole"), output=str(tmp_path / "whole-model"))
    run_training(whole, CPU)
    ours, theirs = exported(config), exported(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("num_failures", [3, 4])
@pytest.mark.parametrize("ends_by", ["stop", "last step"])
def test_a_last_save_that_fails_is_tried_again(
    make_config: Callable[..., TrainConfig],
    process_group: None,
    monkeypatch: pytest.MonkeyPatch,
    ends_by: str,
    num_failures: int,
) -> None:
    monkeypatch.setattr("ray_apps.train.saving.SAVE_AGAIN_S", 0.0)
    problems, write = ["No space left on device"] * num_failures, Saver._write
    monkeypatch.setattr(Saver, "_write", lambda *arguments: problems.pop() if problems else write(*arguments))
    config = make_config(max_steps=6, checkpoint={"every_steps": 100, "preemption_poll_s": 0})
    run, last = RunDir(config.run_dir), 3 if ends_by == "stop" else 6
    steps = iter(range(1, 7))

    def ask() -> None:
        if next(steps) == last - 1 and ends_by == "stop":
            os.kill(os.getpid(), signal.SIGTERM)

    if num_failures > config.checkpoint.max_failed_saves:
        with pytest.raises(SavesFailed, match=f"^step {last}: saving failed, 4 in a row: No space left on device$"):
            run_training(config, CPU, notice=ask)
        assert run.read_metrics()[-1]["event"] == "failed"
        assert run.latest_checkpoint() is None
    else:
        assert run_training(config, CPU, notice=ask) == ("stopped" if ends_by == "stop" else "finish")
        assert [record["step"] for record in events(config, "checkpoint")] == [last]
    assert [record["step"] for record in events(config, "save_failed")] == [last] * num_failures


def test_the_best_checkpoint_stays_and_can_be_exported(
    make_config: Callable[..., TrainConfig], process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = iter([0.5, 0.2, 0.3])
    monkeypatch.setattr("ray_apps.train.loop.held_out_loss", lambda *arguments, **options: next(curve))
    config = make_config(
        max_steps=6, eval_every_steps=2, checkpoint={"every_steps": 100, "keep_last": 1, "keep_best": 1}
    )
    run_training(config, CPU)
    run = RunDir(config.run_dir)
    assert [checkpoint.step for checkpoint in run.complete_checkpoints()] == [6, 4]
    last = exported(config)
    best = exported(config.model_copy(update={"export": "best"}))
    assert any(not torch.equal(last[name], best[name]) for name in last)


def test_a_checkpoint_with_a_changed_byte_is_passed_over(
    make_config: Callable[..., TrainConfig], process_group: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(max_steps=6)
    run_training(config, CPU)
    newest = RunDir(config.run_dir).latest_checkpoint()
    assert newest is not None
    name = max(newest.files, key=lambda file: newest.files[file]["bytes"])
    shard = Path(newest.folder.path) / name
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    whole = losses(config)
    run_training(config, CPU)
    assert f"is damaged ({name} has another SHA-256" in caplog.text
    assert [record["step"] for record in events(config, "start")] == [0, 4]
    assert losses(config) == whole


@pytest.mark.slow
def test_any_number_of_workers_shares_a_batch_out(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """Four rows over three ranks: one rank computes two, and the others take part in both passes."""
    one = make_config(run_dir=str(tmp_path / "one"), max_steps=3)
    run_ranks(one, tmp_path / "rendezvous-one", 1)
    three = make_config(run_dir=str(tmp_path / "three"), max_steps=3, num_workers=[1, 3])
    run_ranks(three, tmp_path / "rendezvous-three", 3)
    assert losses(three) == pytest.approx(losses(one), rel=1e-4)
    tokens = [[r["tokens"] for r in RunDir(c.run_dir).read_metrics() if "loss" in r] for c in (one, three)]
    assert tokens[0] == tokens[1]


def test_a_final_checkpoint_that_is_damaged_is_made_again(
    make_config: Callable[..., TrainConfig], process_group: None, tmp_path: Path
) -> None:
    config = make_config(max_steps=6)
    run_training(config, CPU)
    whole = exported(config)
    latest = RunDir(config.run_dir).latest_checkpoint()
    assert latest is not None
    shard = Path(latest.folder.path) / next(name for name in latest.files if name.endswith(".distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RunError, match="the same command again goes on from the one before"):
        exported(config)
    run_training(config, CPU)
    assert [record["step"] for record in events(config, "start")] == [0, 4]
    again = exported(config)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_full_disk_ends_the_curves_and_not_the_run(
    make_config: Callable[..., TrainConfig],
    process_group: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_scalar = SummaryWriter.add_scalar

    def full(writer: SummaryWriter, name: str, value: float, step: int) -> None:
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        add_scalar(writer, name, value, step)

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    config = make_config(max_steps=6)
    run_training(config, CPU)
    assert len(losses(config)) == 6
    assert caplog.text.count("no more curves: [Errno 28] No space left on device") == 1
