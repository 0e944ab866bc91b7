"""Spot machines that are taken away, with notice, without, and all at once: a run loses next to nothing."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from ray_apps.run_dir import RunDir
from ray_apps.spot.records import read_records
from ray_apps.train.config import TrainConfig
from ray_apps.train.launch import train
from tests import metadata, s3, tiny
from tests.integration.slowly import slowly
from tests.integration.test_recovery import SETTINGS, Events, add_node, fixed_run, trained
from tests.metadata import Metadata
from tests.ray_apps.train.test_loop import losses
from tests.s3 import Bucket

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
STEPS = 80
PAUSE_S = 0.8
"""After each step."""
NOTICE_S = 40
LEARN_S = 5.0
"""Within which the ranks know of a notice."""


def start_cluster() -> Cluster:
    """A head without CPUs. Ray Train asks the dashboard whether a run is alive: it has one of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port}
    return Cluster(initialize_head=True, head_node_args=head)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ray_apps.train.launch.train_loop_per_worker", slowly(PAUSE_S))
    cluster = start_cluster()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def config(tiny_model_dir: Path, tmp_path: Path) -> TrainConfig:
    """A run that saves on notice only."""
    dataset = tiny.write_dataset(tmp_path / "dataset", tiny_model_dir, template="chatml", count=200)
    return TrainConfig.parse(
        {
            "model": str(tiny_model_dir),
            "dataset": str(dataset),
            "run_dir": str(tmp_path / "run"),
            "output": str(tmp_path / "model"),
            "global_batch_size": 4,
            "max_steps": STEPS,
            "epochs": 999,
            "learning_rate": 1e-3,
            "precision": "fp32",
            "num_workers": [1, 2],
            "resize_every_s": 2.0,
            "max_failures": 0,
            "checkpoint": {"every_steps": 1000, "preemption_poll_s": 0},
        }
    )


@contextmanager
def watched(cluster: Cluster, node: str, records: Path) -> Iterator[Metadata]:
    """A watcher, as it runs beside each node, and what its machine's cloud tells it."""
    options = ["--node", node, "--address", cluster.address, "--records", str(records)]
    with metadata.serving("aws") as cloud:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray_apps.cli", "spot", "watch", "--metadata-url", cloud.url, *options], cwd=ROOT
        )
        try:
            wait_for(lambda: any("instance-action" in path for path in cloud.asked))
            yield cloud
        finally:
            process.terminate()
            assert process.wait(60) == 0


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < until, "it never came so far"
        time.sleep(0.05)


def kill(process: int) -> None:
    """SIGKILL to a process and to all below it, as when the machine is gone."""
    family = [psutil.Process(process), *psutil.Process(process).children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=30)


def kill_node(cluster: Cluster, node: Any) -> None:
    for processes in list(node.all_processes.values()):
        for info in processes:
            with suppress(psutil.NoSuchProcess):
                kill(info.process.pid)
    cluster.remove_node(node, allow_graceful=False)


def records_of(config: TrainConfig, event: str) -> list[dict[str, Any]]:
    return [record for record in RunDir(config.run_dir).read_metrics() if record.get("event") == event]


@pytest.mark.parametrize("told", [True, False], ids=["with notice", "without"])
def test_a_machine_is_taken_away_and_another_one_comes(
    cluster: Cluster, config: TrainConfig, tmp_path: Path, *, told: bool
) -> None:
    if not told:
        often = config.checkpoint.model_copy(update={"every_steps": 10})
        config = config.model_copy(update={"max_failures": 1, "checkpoint": often})
    fixed = fixed_run(config, tmp_path)
    cluster.add_node(num_cpus=1, node_name="stays")
    doomed = cluster.add_node(num_cpus=1, node_name="doomed")
    ray.init(address=cluster.address, log_to_driver=False)
    events, done, notices = Events(), threading.Event(), tmp_path / "notices"
    deadlines: list[float] = []
    with ExitStack() as stack:
        _, cloud = (stack.enter_context(watched(cluster, name, notices)) for name in ("stays", "doomed"))

        def take_away() -> None:
            kill_node(cluster, doomed)
            add_node(cluster, done)

        if told:
            events.when(trained(12), lambda: deadlines.append(cloud.interrupt(NOTICE_S)))
            events.when(lambda record: record.get("event") == "checkpoint", take_away)
        else:
            events.when(trained(12), take_away)
        train(config, on_progress=events.watch)
    done.set()
    assert events.sizes[0] == 2
    assert len(events.sizes) > 1
    assert events.sizes[-1] == 2  # on the new machine; in between on one, unless it came before the run started again
    assert losses(config)[-1] == pytest.approx(losses(fixed)[-1], abs=1e-3)
    assert losses(config) == pytest.approx(losses(fixed), abs=1e-3)
    if not told:
        assert read_records(str(notices)) == []
        assert records_of(config, "notice") == []
        return
    (record,) = read_records(str(notices))
    assert record.drained == (doomed.node_id,)
    assert record.drain_deadline == record.notice.deadline - 5 == deadlines[0] - 5
    notice, saved = records_of(config, "notice")[0], records_of(config, "checkpoint")[0]
    assert notice["saved"]
    assert cloud.served_at is not None
    assert notice["time"] - cloud.served_at <= LEARN_S
    assert saved["step"] == notice["step"]
    assert saved["time"] < record.drain_deadline
    assert records_of(config, "start")[1]["step"] == saved["step"]


def run_region(config: str) -> None:
    """A cluster of two machines that trains; all of it ends with this process."""
    import ray_apps.train.launch as launch

    os.environ.update(SETTINGS)
    launch.train_loop_per_worker = slowly(PAUSE_S)  # type: ignore[assignment]
    cluster = start_cluster()
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    train(TrainConfig(**json.loads(config)))
    ray.shutdown()
    cluster.shutdown()


@contextmanager
def region(config: TrainConfig) -> Iterator[subprocess.Popen[bytes]]:
    code = "import sys; from tests.integration.test_spot import run_region; run_region(sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", code, config.model_dump_json()], cwd=ROOT)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process.pid)


def test_a_whole_region_dies_and_another_one_goes_on(
    config: TrainConfig, s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.variables(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(s3_endpoint, tmp_path.name)
    often = config.checkpoint.model_copy(update={"every_steps": 4})
    config = config.model_copy(update={"max_steps": 24, "checkpoint": often})
    fixed = fixed_run(config, tmp_path)
    config = config.model_copy(update={"run_dir": f"{bucket.uri}/run"})
    with region(config) as first:
        wait_for(lambda: first.poll() is not None or records_of(config, "checkpoint"))
        time.sleep(1)
        assert first.poll() is None
        kill(first.pid)
    saved = RunDir(config.run_dir).latest_checkpoint()
    assert saved is not None
    with region(config) as second:
        assert second.wait(240) == 0
    starts = [record["step"] for record in records_of(config, "start")]
    assert (starts[0], starts[1]) == (0, saved.step)
    assert losses(config)[-1] == pytest.approx(losses(fixed)[-1], abs=1e-3)
    assert losses(config) == pytest.approx(losses(fixed), abs=1e-3)
