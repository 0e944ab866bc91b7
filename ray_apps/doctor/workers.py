"""Processes that stand for the workers of a run: each calls a function, and none keeps the others waiting.

A function is called as `function(rank, world_size, *arguments)` and returns plain data.
"""

import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol, Self

Function = Callable[..., Any]


@dataclass(frozen=True)
class Answer:
    """What one worker said."""

    rank: int
    node: str
    value: Any = None
    failure: str | None = None
    """Why there is no value."""
    silent: bool = False
    """It was not an error that it told: it died, or said nothing in time."""

    @property
    def who(self) -> str:
        """The worker, as a person would look for it."""
        return f"rank {self.rank} ({self.node})"


class Workers(Protocol):
    """The workers, wherever they are."""

    nodes: list[str]
    """The name of the node of each rank."""
    address: str
    """Where the other workers reach rank 0."""

    def run(
        self, function: Function, *arguments: Any, timeout_s: float, ranks: Sequence[int] | None = None
    ) -> list[Answer]:
        """Call the function on every worker, or on `ranks`, at the same time; a worker out of time is ended."""


def first_ranks(nodes: Sequence[str]) -> list[int]:
    """The first rank of each node."""
    return [rank for rank, node in enumerate(nodes) if node not in nodes[:rank]]


def failures(answers: Sequence[Answer]) -> str:
    """Which workers failed and why, in one line; those that said nothing come alone, for the others waited for them."""
    failed = [answer for answer in answers if answer.failure is not None]
    silent = [answer for answer in failed if answer.silent]
    return "; ".join(f"{answer.who}: {answer.failure}" for answer in silent or failed)


def attempt(function: Function, *arguments: Any) -> tuple[Any, str | None]:
    """The value of a call, or the first line of its error."""
    try:
        return function(*arguments), None
    except Exception as error:
        lines = str(error).strip().splitlines()
        return None, lines[0] if lines else type(error).__name__


class LocalWorkers:
    """Workers on this machine: spawned processes, which end with the block."""

    def __init__(self, num_workers: int) -> None:
        self.nodes = [platform.node()] * num_workers
        self.address = "127.0.0.1"
        self._workers: dict[int, tuple[SpawnProcess, Connection]] = {}
        self._num_calls = 0

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        for rank in range(len(self.nodes)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, rank, len(self.nodes)), daemon=True)
            process.start()
            theirs.close()
            self._workers[rank] = (process, ours)
        return self

    def __exit__(self, *error: object) -> None:
        for rank in list(self._workers):
            self._end(rank)

    def run(
        self, function: Function, *arguments: Any, timeout_s: float, ranks: Sequence[int] | None = None
    ) -> list[Answer]:
        """Call the function on the workers; one that gives no answer within `timeout_s` is ended."""
        asked = range(len(self.nodes)) if ranks is None else ranks
        answers = {rank: self._silent(rank, "its process has ended") for rank in asked if rank not in self._workers}
        waiting = {self._workers[rank][1]: rank for rank in asked if rank in self._workers}
        self._num_calls += 1
        for connection in waiting:
            with suppress(BrokenPipeError):  # told below, when nothing can be read from it
                connection.send((self._num_calls, function, arguments))
        deadline = time.monotonic() + timeout_s
        while waiting and (ready := wait(list(waiting), max(0, deadline - time.monotonic()))):
            for connection in [connection for connection in waiting if connection in ready]:
                if (answer := self._receive(waiting[connection])) is not None:
                    answers[waiting.pop(connection)] = answer
        for rank in waiting.values():
            self._end(rank)
            answers[rank] = self._silent(rank, f"no answer within {timeout_s:.0f} s")
        return [answers[rank] for rank in asked]

    def _receive(self, rank: int) -> Answer | None:
        """What a worker has said; None if that was the answer to an earlier call, which was interrupted."""
        process, connection = self._workers[rank]
        try:
            call, value, failure = connection.recv()
        except (EOFError, ConnectionResetError):
            process.join(5)
            self._end(rank)
            return self._silent(rank, f"its process died with exit code {process.exitcode}")
        return Answer(rank, self.nodes[rank], value, failure) if call == self._num_calls else None

    def _silent(self, rank: int, failure: str) -> Answer:
        return Answer(rank, self.nodes[rank], failure=failure, silent=True)

    def _end(self, rank: int) -> None:
        process, connection = self._workers.pop(rank)
        connection.close()
        process.kill()
        process.join()


def _work(connection: Connection, rank: int, world_size: int) -> None:
    """Answer until nobody asks any more."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no part of the report
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the asking process, which then ends this one
    with suppress(EOFError, BrokenPipeError):
        while True:
            call, function, arguments = connection.recv()
            connection.send((call, *attempt(function, rank, world_size, *arguments)))
