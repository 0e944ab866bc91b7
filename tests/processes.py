"""Ranks of a training run in processes of their own, forked from one that has everything imported."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ray_apps.train.config import TrainConfig

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ray_apps.train.loop", "torch.utils.tensorboard", "transformers.models.llama"])

CPU = torch.device("cpu")


def start_server() -> None:
    """Start the process that ranks are forked from, before a cluster that ends what is started under it."""
    forkserver.ensure_running()


def run_rank(rank: int, world_size: int, rendezvous: str, config: TrainConfig, stop_after: int | None) -> None:
    """One rank of a training run; dies without a word once step `stop_after` is saved."""
    from ray_apps.train.loop import run_training

    def after_save(measures: dict[str, Any]) -> None:
        if measures["step"] == stop_after:
            os._exit(9)

    with group(rank, world_size, rendezvous):
        run_training(config, CPU, after_save)


class group:  # noqa: N801 - used as a function
    """A gloo process group while the block runs."""

    def __init__(self, rank: int, world_size: int, rendezvous: str) -> None:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)

    def __enter__(self) -> None:
        return

    def __exit__(self, *error: object) -> None:
        dist.destroy_process_group()


def start(target: Callable[..., None], *arguments: Any) -> Any:
    """A started process."""
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def run_ranks(config: TrainConfig, rendezvous: Path, world_size: int, stop_after: int | None = None) -> None:
    """All ranks of a run, to its end."""
    processes = [start(run_rank, rank, world_size, str(rendezvous), config, stop_after) for rank in range(world_size)]
    for process in processes:
        process.join()
    assert {process.exitcode for process in processes} == {0 if stop_after is None else 9}
