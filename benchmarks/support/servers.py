"""Servers as processes of their own: started, waited for, looked at and ended."""

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from benchmarks.support.load import ask

ROOT = Path(__file__).parent.parent.parent
START_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Server:
    """How a server is started and asked. `programs`: commands and the ports they listen on; the last one is asked.

    `fields` go into the body of every request beside `messages` and `max_tokens`. `takes_text`: its prompts are sent as
    one message, rendered, because it does not use the model's chat template.
    """

    name: str
    programs: Sequence[tuple[int, Sequence[str]]]
    fields: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    takes_text: bool = False

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.programs[-1][0]}/v1"


@dataclass(frozen=True)
class Running:
    """A server that answers. `start_s`: from the start of its first process to the first token."""

    server: Server
    processes: Sequence[subprocess.Popen[bytes]]
    start_s: float

    def cpu_s(self) -> Counter[str]:
        """Seconds of processor time that each process below has taken so far, under its name."""
        spent: Counter[str] = Counter()
        for process in _family(self.processes):
            try:
                times = process.cpu_times()
                spent[_title(process)] += times.user + times.system
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return spent


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(server: Server, body: Mapping[str, Any]) -> Iterator[Running]:
    """Run `server` within the block; it has answered `body` by then.

    Raises:
        RuntimeError: it ended, or did not answer in time; with what it printed.
    """
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        try:
            for port, command in server.programs:
                processes.append(_start(command, server.environment, log))
                _until(lambda port=port: _connects(port), processes, log)
            _until(lambda: _answers(server.url, body), processes, log)
            yield Running(server, processes, time.perf_counter() - started)
        finally:
            _end(processes)


def _start(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
    )


def _until(is_up: Callable[[], bool], processes: Sequence[subprocess.Popen[bytes]], log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_up():
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            log.seek(0)
            raise RuntimeError(f"{processes[-1].args} does not serve:\n{log.read().decode(errors='replace')[-4000:]}")
        time.sleep(0.1)


def _connects(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _answers(url: str, body: Mapping[str, Any]) -> bool:
    try:
        return bool(asyncio.run(ask(url, body)).text)
    except (OSError, EOFError, RuntimeError):
        return False


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask each to end, wait, and then end what is left of it."""
    family = _family(processes)
    for process in reversed(processes):
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for process in family:
        if process.is_running():
            process.kill()
    psutil.wait_procs(family, timeout=10)


def _family(processes: Sequence[subprocess.Popen[bytes]]) -> list[psutil.Process]:
    family = []
    for process in processes:
        try:
            parent = psutil.Process(process.pid)
            family += [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return family


def _title(process: psutil.Process) -> str:
    """Its program, or what it calls itself."""
    command = process.cmdline()
    return command[0].rsplit("/", 1)[-1] if command else process.name()
