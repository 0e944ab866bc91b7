"""A disk that is full: what was saved stays, training goes on, and a run that cannot save at all says so.

The kernel's limit on the size of a file stands for the full disk: writes beyond it fail as real writes do.
"""

import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from ray_apps.run_dir import RunDir
from ray_apps.train.config import TrainConfig
from ray_apps.train.errors import SavesFailed
from ray_apps.train.loop import run_training
from tests.processes import CONTEXT, CPU
from tests.ray_apps.train.test_loop import exported, losses

pytestmark = pytest.mark.slow

ROOM = 40_000  # bytes: enough for the records of a run, too few for a shard


def train_on_a_full_disk(
    rank: int, world_size: int, rendezvous: str, config: TrainConfig, num_failures: int, answers: Any
) -> None:
    """Train in a process whose disk is full after the first save, until `num_failures` saves have failed on rank 0."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    whole, seen = resource.getrlimit(resource.RLIMIT_FSIZE), 0
    append = RunDir.append_metrics

    def full(measures: dict[str, float]) -> None:
        if measures["step"] == 2 and rank == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, whole[1]))

    def watch(run: RunDir, record: dict[str, Any]) -> None:
        nonlocal seen
        append(run, record)
        seen += record.get("event") == "save_failed"
        if seen == num_failures:
            resource.setrlimit(resource.RLIMIT_FSIZE, whole)

    RunDir.append_metrics = watch  # type: ignore[method-assign, assignment]
    try:
        run_training(config, CPU, after_save=full)
        answers.put((rank, "finished"))
    except SavesFailed as error:
        answers.put((rank, str(error)))
    dist.destroy_process_group()


def run(config: TrainConfig, tmp_path: Path, *, num_failures: int, world_size: int) -> dict[int, str]:
    """How each rank ended."""
    context = CONTEXT
    answers = context.Queue()
    rendezvous = str(tmp_path / f"rendezvous-{num_failures}")
    processes = [
        context.Process(target=train_on_a_full_disk, args=(rank, world_size, rendezvous, config, num_failures, answers))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    ended = dict(answers.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    return ended


def test_training_goes_on_and_saves_when_there_is_room_again(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(max_steps=8, num_workers=2)
    assert run(config, tmp_path, num_failures=2, world_size=2) == {0: "finished", 1: "finished"}
    records = RunDir(config.run_dir).read_metrics()
    assert [record["step"] for record in records if record.get("event") == "save_failed"] == [4, 6]
    assert len(losses(config)) == 8
    (tmp_path / "whole").mkdir()
    whole = make_config(
        max_steps=8, num_workers=2, run_dir=str(tmp_path / "whole"), output=str(tmp_path / "whole-model")
    )
    assert run(whole, tmp_path, num_failures=0, world_size=2) == {0: "finished", 1: "finished"}
    ours, theirs = exported(config), exported(whole)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_run_that_cannot_save_ends_with_its_last_checkpoint_whole(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(max_steps=20, checkpoint={"every_steps": 2, "max_failed_saves": 1})
    (message,) = run(config, tmp_path, num_failures=99, world_size=1).values()
    assert message.startswith("step 6: saving failed, 2 in a row: ")
    assert re.search(r"[\d.]+ GB are free at \S*run\)$", message)
    latest = RunDir(config.run_dir).latest_checkpoint()
    assert latest is not None
    assert latest.step == 2
    assert [path.name for path in Path(RunDir(config.run_dir).checkpoints.path).iterdir()] == ["step-00000002"]
    assert RunDir(config.run_dir).read_metrics()[-1]["message"] == message
