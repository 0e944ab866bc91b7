"""Ranks that stay: processes in one group that train run after run, as starting them takes longer than a tiny run."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from data_prep.errors import RunError
from ray_apps.run_dir import RunDir
from ray_apps.train.config import TrainConfig
from tests.processes import CONTEXT, CPU, group, start


class StoppedError(Exception):
    pass


def _train(config: TrainConfig, stop_after: int | None) -> None:
    """Train on this rank; stop after saving step `stop_after`. A run that is given up has recorded why."""
    from ray_apps.train.loop import run_training

    def stop(measures: dict[str, float]) -> None:
        if measures["step"] == stop_after:
            raise StoppedError

    try:
        run_training(config, CPU, stop)
    except (StoppedError, RunError):
        return


def _serve(rank: int, world_size: int, rendezvous: str, connection: Connection) -> None:
    with group(rank, world_size, rendezvous):
        while (run := connection.recv()) is not None:
            try:
                _train(*run)
                connection.send(None)
            except Exception:
                connection.send(traceback.format_exc())


class Ranks:
    """`train` returns when every rank has trained; a rank's error ends the test."""

    def __init__(self, connections: list[Any]) -> None:
        self._connections = connections

    def train(self, *configs: TrainConfig, stop_after: int | None = None) -> None:
        """One run after another; each stops after saving step `stop_after`, if that is given."""
        for config in configs:
            for connection in self._connections:
                connection.send((config, stop_after))
            waiting = list(self._connections)
            while waiting:
                for connection in wait(waiting):
                    waiting.remove(connection)
                    error = connection.recv()  # EOFError: it died
                    assert error is None, f"{config.run_dir}: {error}"


@contextmanager
def started(world_size: int, rendezvous: Path) -> Iterator[Ranks]:
    """`world_size` ranks, ended with the block."""
    pipes = [CONTEXT.Pipe() for _ in range(world_size)]
    processes = [start(_serve, rank, world_size, str(rendezvous), pipes[rank][1]) for rank in range(world_size)]
    for _, theirs in pipes:
        theirs.close()
    try:
        yield Ranks([ours for ours, _ in pipes])
        for ours, _ in pipes:
            ours.send(None)
    except BaseException:
        for process in processes:  # the others may wait for the one that failed
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()


def losses(config: TrainConfig) -> list[float]:
    return [record["loss"] for record in RunDir(config.run_dir).read_metrics() if "loss" in record]
