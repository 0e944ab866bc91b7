"""Two groups of workers on one run directory: the later goes on, the earlier ends, and every checkpoint is whole."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_apps.run_dir import RunDir
from ray_apps.train.config import TrainConfig
from ray_apps.train.errors import TakenOver
from ray_apps.train.loop import run_training
from ray_apps.train.saving import Keeper
from ray_apps.train.state import TrainState
from tests import s3
from tests.processes import CPU, group, run_ranks, start
from tests.ray_apps.train.test_loop import exported
from tests.s3 import Bucket

TOLD = 7
"""Exit code of a rank that was told that others go on with its run."""
STEPS, MET_AT = 14, 6


def train(variables: dict[str, str], rank: int, world_size: int, rendezvous: str, config: TrainConfig) -> None:
    """One rank. The first to come so far waits there for others to begin, and goes on as if nothing had happened."""
    os.environ.update(variables)
    run, after_step = RunDir(config.run_dir), Keeper.after_step

    def meet(keeper: Keeper, state: TrainState, *arguments: Any, **options: Any) -> bool:
        while state.step == MET_AT and len(starts(run)) < 2:
            time.sleep(0.02)
        return after_step(keeper, state, *arguments, **options)

    Keeper.after_step = meet  # type: ignore[method-assign]
    with group(rank, world_size, rendezvous):
        try:
            run_training(config, CPU)
        except TakenOver:
            os._exit(TOLD)


def starts(run: RunDir) -> list[int]:
    return [record["step"] for record in run.read_metrics() if record.get("event") == "start"]


@pytest.mark.slow
@pytest.mark.parametrize(("place", "workers"), [("disk", 2), ("s3", 1)])
def test_of_two_groups_of_workers_the_later_goes_on(
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    s3_endpoint: str,
    place: str,
    workers: int,
) -> None:
    """As when a command is killed and given again while its workers live on."""
    variables = s3.variables(s3_endpoint)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run_dir = str(tmp_path / "run") if place == "disk" else f"{Bucket(s3_endpoint, tmp_path.name).uri}/run"
    settings = {"epochs": 99, "max_steps": STEPS, "num_workers": workers}
    config = make_config(run_dir=run_dir, checkpoint={"every_steps": 1, "keep_last": 1}, **settings)
    run = RunDir(config.run_dir)

    def begin(name: str) -> list[object]:
        rendezvous = str(tmp_path / f"rendezvous-{name}")
        return [start(train, variables, rank, workers, rendezvous, config) for rank in range(workers)]

    earlier = begin("earlier")
    deadline = time.monotonic() + 60
    newest = 0
    while newest < MET_AT - 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        with suppress(OSError):  # old ones are removed while they are looked at
            newest = max((checkpoint.step for checkpoint in run.complete_checkpoints()), default=0)
    later = begin("later")
    codes = []
    for process in [*earlier, *later]:
        process.join()
        codes.append(process.exitcode)
    assert codes == [TOLD] * workers + [0] * workers

    assert starts(run)[0] == 0
    assert MET_AT - 2 <= starts(run)[1] < MET_AT
    assert not [record for record in run.read_metrics() if record.get("event") == "failed"]
    (name,) = run.checkpoints.folders()
    assert name.startswith(f"step-{STEPS:08d}")
    whole = make_config(run_dir=str(tmp_path / "whole"), output=str(tmp_path / "whole-model"), **settings)
    run_ranks(whole, tmp_path / "rendezvous-whole", workers)
    ours, theirs = exported(config), exported(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_workers_of_a_command_that_lost_the_run_do_not_begin(
    make_config: Callable[..., TrainConfig], process_group: None
) -> None:
    config = make_config(max_steps=2)
    run = RunDir(config.run_dir)
    with pytest.raises(TakenOver, match="was removed, or is not seen by"):
        run_training(config, CPU, launch="first")
    run.take_over("first")
    assert run_training(config, CPU, launch="first") == "finish"
    run.take_over("second")
    before = run.read_metrics()
    with pytest.raises(TakenOver, match="was taken over by process"):
        run_training(config, CPU, launch="first")
    assert run.read_metrics() == before


def test_workers_find_out_between_two_saves(
    make_config: Callable[..., TrainConfig], process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_apps.train.saving.LOOK_S", 0.0)
    config = make_config(max_steps=8, checkpoint={"every_steps": 100, "preemption_poll_s": 0})
    run, polls = RunDir(config.run_dir), 0

    def lose() -> None:
        nonlocal polls
        polls += 1
        if polls == 3:
            run.take_over("another")

    with pytest.raises(TakenOver):
        run_training(config, CPU, notice=lose)
    assert polls == 3
    assert run.latest_checkpoint() is None
    assert run.read_metrics()[-1]["step"] == 4
