"""A Ray cluster of this machine alone, which leaves nothing behind, however the program ends."""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil
import ray
from ray.exceptions import AuthenticationError

from data_prep.errors import ConfigError
from ray_apps.machine import count_gpus, usable_cpus

_PR_SET_CHILD_SUBREAPER = 36


@contextmanager
def local_cluster(num_cpus: int | None = None, *, dashboard: bool = True) -> Iterator[None]:
    """Use the cluster that `RAY_ADDRESS` names, or start one here and end it with the block. A second one is the first.

    Ray Train asks the state API of a `dashboard` whether a run is alive. Without one of its own it would ask that of
    any other cluster on this machine, be told no, and end the run.

    Every process started below this one is ended with it, also after Ctrl-C or SIGTERM.

    Raises:
        ConfigError: the cluster that `RAY_ADDRESS` names is to be asked with a token, and there is none.
    """
    if ray.is_initialized():
        yield
        return
    if address := os.environ.get("RAY_ADDRESS"):
        _join(address)
        try:
            yield
        finally:
            ray.shutdown()
        return
    _adopt_orphans()
    before = signal.signal(signal.SIGTERM, _interrupt)
    known = set(psutil.Process().children(recursive=True))
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus or usable_cpus(),
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
        yield
    finally:
        with _uninterrupted():
            ray.shutdown()
            _end(set(psutil.Process().children(recursive=True)) - known)
        signal.signal(signal.SIGTERM, before)


def _join(address: str) -> None:
    try:
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    except AuthenticationError:
        raise ConfigError(
            f"RAY_ADDRESS: there is no token for the cluster at {address}; put the one it was started with into "
            "~/.ray/auth_token or RAY_AUTH_TOKEN, or set RAY_AUTH_MODE=disabled if it was started without"
        ) from None


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent died, so that they can be found and ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not stop the tidying up."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(processes: set[psutil.Process]) -> None:
    for process in processes:
        with _gone_is_fine():
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=5)
    for process in alive:
        with _gone_is_fine():
            process.kill()
    psutil.wait_procs(alive, timeout=5)


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except psutil.NoSuchProcess:
        return


def available() -> dict[str, float]:
    """CPUs and GPUs of the cluster, or of this machine where none has been started yet."""
    if ray.is_initialized():
        resources = ray.cluster_resources()
        return {kind: resources.get(kind, 0) for kind in ("CPU", "GPU")}
    return {"CPU": usable_cpus(), "GPU": count_gpus()}
