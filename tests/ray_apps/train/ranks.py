"""Training runs on several ranks, each a process: all runs of a list one after another, since starting is slow."""

import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from data_prep.errors import RunError
from ray_apps.run_dir import RunDir
from ray_apps.train.config import TrainConfig
from ray_apps.train.loop import run_training


class StoppedError(Exception):
    pass


def run(config: TrainConfig, stop_after: int | None = None) -> None:
    """Train on this rank; stop after saving step `stop_after`. A run that is given up has recorded why."""

    def stop(measures: dict[str, float]) -> None:
        if measures["step"] == stop_after:
            raise StoppedError

    try:
        run_training(config, torch.device("cpu"), stop)
    except (StoppedError, RunError):
        return


def _run_rank(rank: int, world_size: int, rendezvous: str, runs: Sequence[tuple[TrainConfig, int | None]]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    for config, stop_after in runs:
        run(config, stop_after)
    dist.destroy_process_group()


def run_all(runs: Sequence[tuple[TrainConfig, int | None]], rendezvous: Path, world_size: int) -> None:
    """Each run with the step after whose save it stops, if it does."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_run_rank, args=(rank, world_size, str(rendezvous), runs)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * world_size


def losses(config: TrainConfig) -> list[float]:
    return [record["loss"] for record in RunDir(config.run_dir).read_metrics() if "loss" in record]
