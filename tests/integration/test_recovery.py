"""Nodes that come, go and are taken away, on a real cluster of several nodes on this machine."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from ray_apps.run_dir import RunDir
from ray_apps.train.config import TrainConfig
from ray_apps.train.launch import train
from tests import tiny
from tests.integration.slowly import slowly
from tests.processes import run_ranks
from tests.ray_apps.train.test_loop import exported, losses
from tests.s3 import Bucket

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]

STEPS = 40
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_AUTH_MODE": "disabled",
}


PAUSE_S = 0.25
"""After each step."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs; workers go to nodes of one CPU, added by the test."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ray_apps.train.launch.train_loop_per_worker", slowly(PAUSE_S))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def config(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    dataset = tiny.write_dataset(tmp_path / "dataset", tiny_model_dir, template="chatml", count=200)
    return TrainConfig.parse(
        tiny.train_settings(
            tiny_model_dir,
            dataset,
            run_dir=str(tmp_path / "run"),
            output=str(tmp_path / "model"),
            global_batch_size=4,
            max_steps=STEPS,
            num_workers=[1, 2],
            resize_every_s=2.0,
            checkpoint={"every_steps": 10, "keep_last": 3, "preemption_poll_s": 0},
        )
    )


def fixed_run(config: TrainConfig, tmp_path: Path) -> TrainConfig:
    fixed = config.model_copy(
        update={"run_dir": str(tmp_path / "fixed"), "output": str(tmp_path / "fixed-model"), "num_workers": 1}
    )
    run_ranks(fixed, tmp_path / "rendezvous", 1)
    return fixed


class Events:
    """Does things, each in a thread of its own, when the run has come so far."""

    def __init__(self) -> None:
        self._pending: list[tuple[Callable[[dict[str, Any]], bool], Callable[[], object]]] = []
        self.sizes: list[int] = []
        self.threads: list[threading.Thread] = []

    def when(self, condition: Callable[[dict[str, Any]], bool], action: Callable[[], object]) -> None:
        self._pending.append((condition, action))

    def watch(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            if record.get("event") == "start":
                self.sizes.append(len(record["pids"]))
            if self._pending and self._pending[0][0](record):
                _, action = self._pending.pop(0)
                self.threads.append(threading.Thread(target=action, daemon=True))
                self.threads[-1].start()


def add_node(cluster: Cluster, until: threading.Event) -> None:
    """In a thread, where the handlers that Ray sets for a node cannot be set; the node's processes end with it."""
    with patch("signal.signal"):
        cluster.add_node(num_cpus=1)
    until.wait()


def trained(step: int) -> Callable[[dict[str, Any]], bool]:
    return lambda record: "loss" in record and record["step"] >= step


def test_workers_come_and_go_and_the_batches_stay_the_same(
    cluster: Cluster, config: TrainConfig, tmp_path: Path
) -> None:
    """2 → 1 → 2 workers."""
    config = config.model_copy(update={"max_steps": 220})
    fixed = fixed_run(config, tmp_path)
    cluster.add_node(num_cpus=1)
    leaving = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    events = Events()
    events.when(trained(12), lambda: cluster.remove_node(leaving, allow_graceful=False))
    done = threading.Event()
    events.when(trained(25), lambda: add_node(cluster, done))
    train(config, on_progress=events.watch)
    done.set()
    assert events.sizes[0] == 2
    assert 1 in events.sizes
    assert events.sizes[-1] == 2
    assert losses(config)[-1] == pytest.approx(losses(fixed)[-1], abs=1e-3)
    assert losses(config) == pytest.approx(losses(fixed), abs=1e-3)
    redone = [r["step"] for r in RunDir(config.run_dir).read_metrics() if "loss" in r]
    assert len(redone) - len(set(redone)) <= 10 * (len(events.sizes) - 1)


def take_away(cluster: Cluster, doomed: Any, gone_after_s: float) -> None:
    """Give notice of 8 seconds."""
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + 8) * 1000)
    client = ray._raylet.GcsClient(address=cluster.address)
    client.drain_node(doomed.node_id, reason, "spot", deadline_ms)
    time.sleep(gone_after_s)
    cluster.remove_node(doomed, allow_graceful=False)


@pytest.mark.parametrize(
    "gone_after_s", [9.0, pytest.param(4.0, marks=pytest.mark.soak)], ids=["after the deadline", "before it"]
)
def test_a_notice_saves_what_the_machine_had_done(
    cluster: Cluster, config: TrainConfig, tmp_path: Path, gone_after_s: float
) -> None:
    """Notice, checkpoints at once and as late as they fit, the machine gone: next to nothing is lost or counted."""
    config = config.model_copy(
        update={
            "max_failures": 0,
            "max_steps": 60,
            "checkpoint": config.checkpoint.model_copy(update={"every_steps": 1000}),
        }
    )
    cluster.add_node(num_cpus=1)
    doomed = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    events = Events()

    events.when(trained(5), lambda: take_away(cluster, doomed, gone_after_s))
    train(config, on_progress=events.watch)
    records = RunDir(config.run_dir).read_metrics()
    (notice,) = [record for record in records if record.get("event") == "notice"]
    assert notice["saved"]
    assert len(notice["ranks"]) == 1
    saved = [record["step"] for record in records if record.get("event") == "checkpoint"]
    starts = [record["step"] for record in records if record.get("event") == "start"]
    assert starts[0] == 0
    assert saved[0] == notice["step"]
    assert starts[-1] == saved[0 if gone_after_s < 8 else 1] < 60
    redone = [record["step"] for record in records if "loss" in record]
    assert len(redone) - len(set(redone)) <= (1 if gone_after_s > 8 else 20)
    assert events.sizes == [2, *[1] * (len(starts) - 1)]


@pytest.mark.soak
def test_a_machine_that_is_gone_before_any_worker_looked_counts_for_nothing(
    cluster: Cluster, config: TrainConfig
) -> None:
    never = config.checkpoint.model_copy(update={"preemption_poll_s": 1000.0})
    config = config.model_copy(update={"max_failures": 0, "max_steps": 60, "checkpoint": never})
    cluster.add_node(num_cpus=1)
    doomed = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    events = Events()
    events.when(trained(5), lambda: take_away(cluster, doomed, 4.0))
    train(config, on_progress=events.watch)
    records = RunDir(config.run_dir).read_metrics()
    assert not [record for record in records if record.get("event") == "notice"]
    assert events.sizes[0] == 2
    assert events.sizes[-1] == 1
    assert len(losses(config)) == 60


@pytest.mark.soak
def test_a_frozen_worker_is_named_and_the_run_goes_on(cluster: Cluster, config: TrainConfig) -> None:
    config = config.model_copy(update={"num_workers": 2, "hang_timeout_s": 8.0, "max_steps": 20})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    events = Events()
    pids: list[int] = []

    def watch(records: list[dict[str, Any]]) -> None:
        pids.extend(pid for record in records for pid in record.get("pids", []))
        events.watch(records)

    events.when(trained(5), lambda: os.kill(pids[1], signal.SIGSTOP))
    train(config, on_progress=watch)
    (hang,) = [record for record in RunDir(config.run_dir).read_metrics() if record.get("event") == "hang"]
    assert f"rank 1 (process {pids[1]} on " in hang["message"]
    assert events.sizes == [2, 2]
    assert len(losses(config)) == 20


@pytest.mark.soak
def test_a_run_on_s3_goes_on_after_a_killed_worker(bucket: Bucket, cluster: Cluster, config: TrainConfig) -> None:
    config = config.model_copy(update={"run_dir": f"{bucket.uri}/run", "num_workers": 2, "max_steps": 24})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    events = Events()
    pids: list[int] = []

    def watch(records: list[dict[str, Any]]) -> None:
        pids.extend(pid for record in records for pid in record.get("pids", []))
        events.watch(records)

    events.when(lambda record: record.get("event") == "checkpoint", lambda: os.kill(pids[1], signal.SIGKILL))
    train(config, on_progress=watch)
    starts = [r["step"] for r in RunDir(config.run_dir).read_metrics() if r.get("event") == "start"]
    assert starts[0] == 0
    assert starts[-1] >= 10
    assert len(losses(config)) == 24
    assert exported(config)
