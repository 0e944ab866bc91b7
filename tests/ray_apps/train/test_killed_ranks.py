"""SIGKILL of a random rank of two at a random moment: the run goes on to the very weights of one left alone."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_apps.run_dir import RunDir
from ray_apps.train.config import TrainConfig
from tests.processes import CPU, group, run_ranks, start
from tests.ray_apps.train.test_loop import exported

pytestmark = pytest.mark.slow

STEPS, EVERY = 10, 3


def train_until_killed(rank: int, rendezvous: str, config: TrainConfig, victim: int, step: int, moment: str) -> None:
    """One rank of two; the victim dies in `step`: before its backward pass, before its update, or beside its save."""
    from ray_apps.train.loop import run_training
    from ray_apps.train.shards import ShardWriter
    from ray_apps.train.strategies.fsdp import FsdpStrategy

    passes = 0

    def die(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def count(*arguments: Any, **options: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == step * config.global_batch_size // 2:
            if moment == "backward":
                die()
            owner, name = (FsdpStrategy, "step") if moment == "update" else (ShardWriter, "write_data")
            setattr(owner, name, die)
        return backward(*arguments, **options)

    backward = FsdpStrategy.backward
    if rank == victim:
        FsdpStrategy.backward = count  # type: ignore[method-assign]
    with group(rank, 2, rendezvous):
        run_training(config, CPU)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(2, 16))])
def test_a_killed_rank_changes_nothing(
    make_config: Callable[..., TrainConfig], tmp_path: Path, whole: Path, seed: int
) -> None:
    settings: dict[str, Any] = {"max_steps": STEPS, "num_workers": 2, "lora": None}
    asynchronous = seed % 2 == 0
    checkpoint = {"every_steps": EVERY, "asynchronous": asynchronous}
    left_alone = make_config(run_dir=str(whole / "run"), output=str(whole / "model"), **settings)
    if RunDir(left_alone.run_dir).latest_checkpoint() is None:
        run_ranks(left_alone, whole / "rendezvous", 2)

    config, chosen = make_config(**settings, checkpoint=checkpoint), random.Random(seed)
    victim, step = chosen.randrange(2), chosen.randrange(1, STEPS)
    moment = chosen.choice(["backward", "update", "save"])
    arguments = (str(tmp_path / "rendezvous"), config, victim, step, moment)
    processes = [start(train_until_killed, rank, *arguments) for rank in range(2)]
    for process in processes:
        process.join()
    assert processes[victim].exitcode == -signal.SIGKILL
    assert processes[1 - victim].exitcode not in (0, None)

    run_ranks(config, tmp_path / "rendezvous-again", 2)
    records = RunDir(config.run_dir).read_metrics()
    steps = [record["step"] for record in records if "loss" in record]
    assert len(steps) - len(set(steps)) <= EVERY * (1 + asynchronous)  # that of a save under way
    ours, theirs = exported(config), exported(left_alone)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
