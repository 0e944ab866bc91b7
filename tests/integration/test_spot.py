"""Spot machines that are taken away, with notice, without, and all at once: a run loses next to nothing."""

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
from tests import metadata, tiny
from tests.integration.slowly import slowly
from tests.integration.test_recovery import SETTINGS, Events, add_node, fixed_run, trained
from tests.metadata import Metadata
from tests.ray_apps.train.test_loop import losses

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
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cluster]:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ray_apps.train.launch.train_loop_per_worker", slowly(PAUSE_S, until=tmp_path / "is whole"))
    cluster = start_cluster()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def settings(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that saves on notice only."""
    place = tmp_path_factory.mktemp("spot")
    return tiny.train_settings(
        tiny_model_dir,
        tiny.write_dataset(place / "dataset", tiny_model_dir, template="chatml", count=200),
        global_batch_size=4,
        max_steps=STEPS,
        num_workers=[1, 2],
        resize_every_s=2.0,
        max_failures=0,
        checkpoint={"every_steps": 1000, "preemption_poll_s": 0},
    )


@pytest.fixture(scope="module")
def fixed_losses(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of the run that nothing interrupts."""
    place = tmp_path_factory.mktemp("fixed")
    config = TrainConfig.parse({**settings, "run_dir": str(place / "run"), "output": str(place / "model")})
    return losses(fixed_run(config, place))


@pytest.fixture
def config(settings: dict[str, Any], tmp_path: Path) -> TrainConfig:
    return TrainConfig.parse({**settings, "run_dir": str(tmp_path / "run"), "output": str(tmp_path / "model")})


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
    cluster: Cluster, config: TrainConfig, fixed_losses: list[float], tmp_path: Path, *, told: bool
) -> None:
    if not told:
        often = config.checkpoint.model_copy(update={"every_steps": 10})
        config = config.model_copy(update={"max_failures": 1, "checkpoint": often})
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
        events.when(lambda record: len(record.get("pids", ())) == 2, (tmp_path / "is whole").touch)
        train(config, on_progress=events.watch)
    done.set()
    assert events.sizes[0] == 2
    assert len(events.sizes) > 1
    assert events.sizes[-1] == 2  # on the new machine; in between on one, unless it came before the run started again
    assert losses(config)[-1] == pytest.approx(fixed_losses[-1], abs=1e-3)
    assert losses(config) == pytest.approx(fixed_losses, abs=1e-3)
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
