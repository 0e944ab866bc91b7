"""Start or resume a run on Ray Train, and follow it."""

import json
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from types import FrameType
from typing import Any

import ray
from ray._private import state as cluster_state
from ray.exceptions import RayActorError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer

from data_prep.errors import RunError
from ray_apps.run_dir import RunDir, differences
from ray_apps.train.checks import check_run, count_run_steps, uses_gpu
from ray_apps.train.config import TrainConfig
from ray_apps.train.metrics import FAILED, LAUNCHED, STOPPED
from ray_apps.train.preemptions import Preemptions
from ray_apps.train.receipt import environment, run_receipt
from ray_apps.train.worker import train_loop_per_worker

logger = logging.getLogger(__name__)

RAY_TRAIN_SETTINGS = {
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # the first try after a preemption may pick the dying node
}

FOLLOW_S, FOLLOW_REMOTE_S = 0.5, 3.0
"""Seconds between two looks at the metrics, on a disk and on S3."""


def train(
    config: TrainConfig,
    *,
    on_progress: Callable[[list[dict[str, Any]]], None] = lambda records: None,
    began: float | None = None,
) -> None:
    """Train, or resume, until the run is complete. Does nothing if it already is.

    `on_progress` gets the new lines of the metrics about twice a second, in a thread of its own. `began`: when the
    command did, if that was earlier. SIGTERM lets the run save and ends it.

    Raises:
        RunError: the run directory holds another run, another command has taken it over, or the run failed more often
            than `max_failures`; then the message is the last failure's.
        KeyboardInterrupt: after Ctrl-C, and after SIGTERM once the run has saved.
    """
    manifest = check_run(config)
    run = RunDir(config.run_dir)
    run.folder.make()
    run.check_receipt(run_receipt(config, manifest), environment(config))
    latest, num_steps = run.latest_checkpoint(), count_run_steps(config, manifest)
    if latest is not None and latest.step == num_steps:
        return
    launch = uuid.uuid4().hex[:8]
    run.take_over(launch)
    run.forget_to_stop()
    now, before = environment(config), _last_environment(run.read_metrics())
    run.append_metrics({"event": LAUNCHED, "time": began or time.time(), "environment": now})
    with _followed(run, launch, on_progress) as following, _own_signal_handlers(following):
        if before is not None and (changed := differences(before, now)):
            _warn(run, f"the run goes on with something else than before: {', '.join(changed)}")
        told = _fit(config, run, launch)
    if told.get("ended") == FAILED:
        raise RunError(f"training failed: {told['message']}")
    if told.get("ended") == STOPPED:
        raise KeyboardInterrupt
    if (latest := run.latest_checkpoint()) is None or latest.step < num_steps:
        raise RunError(f"training failed: it ended after step {latest.step if latest else 0} of {num_steps}")


def _last_environment(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the run ran with when it was last started."""
    return next((record["environment"] for record in reversed(records) if "environment" in record), None)


def _fit(config: TrainConfig, run: RunDir, launch: str) -> dict[str, str]:
    """Start the workers, again after each failure but `max_failures`; what rank 0 says of how the run ended.

    Failures are counted here: Ray Train would count a machine that is gone before the deadline of its notice.
    """
    for name, value in RAY_TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)
    num_failures, use_gpu = 0, uses_gpu(config)  # asked once: the machine that is lost may have had the only GPU
    with Preemptions(_leaving_nodes) as preemptions:
        while True:
            try:
                result: Any = _trainer(config, run, launch, use_gpu=use_gpu).fit()
                return result.return_value or {}
            except (WorkerGroupError, ControllerError) as error:
                if not _are_workers_lost(error):
                    raise RunError(f"training failed: {_root_cause(error)}") from error
                num_failures += not preemptions.recent()
                if num_failures > config.max_failures:
                    raise RunError(f"training failed: {_root_cause(error)}") from error
                counted = f"{num_failures} of at most {config.max_failures} failures"
                reason = shorten(_root_cause(error), 160, placeholder=" …")
                _warn(run, f"workers are lost and start again ({counted}): {reason}")
            except Exception as error:
                raise RunError(f"training failed: {_root_cause(error)}") from error


def _are_workers_lost(error: WorkerGroupError | ControllerError) -> bool:
    """Ray Train's controller may stumble over a worker that is gone before it has noted that."""
    return isinstance(error, WorkerGroupError) or isinstance(error.controller_failure, RayActorError)


def _leaving_nodes() -> list[str]:
    """Nodes with workers of this command of which the cluster has notice that they will be taken away."""
    draining = cluster_state.state.get_draining_nodes()
    if not draining:
        return []
    ours, actors = ray.get_runtime_context().get_job_id(), cluster_state.actors().values()
    alive = [actor for actor in actors if actor["JobID"] == ours and actor["State"] != "DEAD"]
    return [node for node in draining if any(actor["Address"]["NodeID"] == node for actor in alive)]


def _warn(run: RunDir, message: str) -> None:
    """Record what a person should know of."""
    try:
        run.append_metrics({"event": "warning", "time": time.time(), "message": message})
    except OSError as error:
        logger.warning("%s; and the metrics cannot be written: %s", message, error)


def _trainer(config: TrainConfig, run: RunDir, launch: str, *, use_gpu: bool) -> TorchTrainer:
    absolute = {"run_dir": run.folder.place, "dataset": str(Path(config.dataset).absolute())}
    if (directory := Path(config.model)).is_dir():
        absolute["model"] = str(directory.absolute())
    fewest, most = config.worker_range
    return TorchTrainer(
        train_loop_per_worker,  # type: ignore[arg-type]
        train_loop_config={"config": config.model_copy(update=absolute).model_dump(), "launch": launch},
        scaling_config=ScalingConfig(
            num_workers=(fewest, most) if config.is_elastic else most,  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=config.resize_every_s,  # type: ignore[call-arg]
            use_gpu=use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            # Every launch has a name of its own: what it goes on from is in the run directory, not in Ray's records.
            name=f"launch-{time.time_ns() // 1_000_000}",
            storage_path=(run.folder / "ray_train").path,
            storage_filesystem=run.folder.filesystem,
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=-1),  # type: ignore[call-arg]
        ),
    )


class _Following:
    """A thread that hands new lines of the metrics on, and a request to stop to the run.

    `has_started`: workers have begun. `wants_stop`: to be set, even by a signal handler, which must not touch files.
    """

    def __init__(self, run: RunDir, launch: str, on_progress: Callable[[list[dict[str, Any]]], None]) -> None:
        self.has_started, self.wants_stop, self._done = threading.Event(), threading.Event(), threading.Event()
        self._run = run
        self._launch = launch
        self._on_progress = on_progress
        self._seen = {json.dumps(record) for record in run.read_metrics()}
        self._thread = threading.Thread(target=self._follow, name="follow-metrics")
        self._thread.start()

    def end(self) -> None:
        """Hand the rest on."""
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        finished = False
        while not finished:
            finished = self._done.wait(FOLLOW_REMOTE_S if self._run.folder.is_remote else FOLLOW_S)
            try:
                self._look()
            except OSError as error:  # S3 may be out of reach for a while
                logger.warning("%s: %s", self._run.folder, error)

    def _look(self) -> None:
        if self.wants_stop.is_set():
            self._run.ask_to_stop(self._launch)
            self.wants_stop.clear()
        records = {json.dumps(record): record for record in self._run.read_metrics()}
        new = [record for line, record in records.items() if line not in self._seen]
        self._seen.update(records)
        if any(record.get("event") == "start" for record in new):
            self.has_started.set()
        if new:
            self._on_progress(new)


@contextmanager
def _followed(run: RunDir, launch: str, on_progress: Callable[[list[dict[str, Any]]], None]) -> Iterator[_Following]:
    """Hand new metrics to `on_progress` while the block runs, and the rest at its end."""
    following = _Following(run, launch, on_progress)
    try:
        yield following
    finally:
        following.end()


@contextmanager
def _own_signal_handlers(following: _Following) -> Iterator[None]:
    """Keep Ray Train's answer to Ctrl-C, an exit that stays in force after the run, from leaving the block.

    SIGTERM asks the run to save and end, or ends the command if it has no workers yet; a second one is what it was
    before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])
        if not following.has_started.is_set():
            raise KeyboardInterrupt
        following.wants_stop.set()

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _root_cause(error: BaseException) -> str:
    """The last line of the innermost error: Ray wraps a worker's error in several of its own."""
    inner = error.__cause__ or error.__context__
    while inner is not None:
        error, inner = inner, inner.__cause__ or inner.__context__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
