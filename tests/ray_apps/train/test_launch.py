"""What counts as a failure, and what a restart keeps, with Ray Train's answers given beforehand."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError

from data_prep.errors import RunError
from ray_apps.run_dir import RunDir
from ray_apps.train import launch, preemptions
from ray_apps.train.config import TrainConfig


class Attempts:
    """In the place of Ray Train's trainer: each attempt does what it is told to, and fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *doings: Callable[[], object]) -> None:
        self.use_gpu: list[bool] = []
        self.error: Exception | None = None
        self._doings: Iterator[Callable[[], object]] = iter(doings)
        monkeypatch.setattr(launch, "_trainer", self._trainer)

    def _trainer(self, config: TrainConfig, run: RunDir, launch: str, *, use_gpu: bool) -> "Attempts":
        self.use_gpu.append(use_gpu)
        return self

    def fit(self) -> Any:
        next(self._doings)()
        if self.error is not None:
            raise self.error
        raise WorkerGroupError("the workers failed", {0: RuntimeError("Connection reset by peer")})


class Cluster:
    """In the place of Ray's answer to which nodes of workers are leaving."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.leaving: list[str] = []
        self._looked = threading.Event()
        monkeypatch.setattr(preemptions, "LOOK_S", 0.001)
        monkeypatch.setattr(launch, "_leaving_nodes", self._look)

    def _look(self) -> list[str]:
        seen = list(self.leaving)
        self._looked.set()
        return seen

    def shows(self, *leaving: str) -> Callable[[], None]:
        """What an attempt does: be there while the cluster is seen to lose these."""

        def wait() -> None:
            self.leaving = list(leaving)
            for _ in range(2):  # the first may be of the state before
                self._looked.clear()
                assert self._looked.wait(10)

        return wait


def end() -> None:
    raise RuntimeError("that is all")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_failures_are_counted_and_told(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    config = make_config(max_failures=1)
    run = RunDir(config.run_dir)
    run.folder.make()
    attempts = Attempts(monkeypatch, *[cluster.shows()] * 2)
    with pytest.raises(RunError, match=r"^training failed: "):
        launch._fit(config, run, "a1")
    assert len(attempts.use_gpu) == 2
    (warning,) = [record for record in run.read_metrics() if record["event"] == "warning"]
    assert warning["message"].startswith("workers are lost and start again (1 of at most 1 failures): ")


@pytest.mark.parametrize(("failure", "num_attempts"), [(ActorDiedError(), 2), (ValueError("a mistake of its own"), 1)])
def test_a_controller_that_stumbles_over_a_lost_worker(
    make_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    cluster: Cluster,
    failure: Exception,
    num_attempts: int,
) -> None:
    config = make_config(max_failures=1)
    attempts = Attempts(monkeypatch, *[cluster.shows()] * 2)
    attempts.error = ControllerError(failure)
    with pytest.raises(RunError, match=r"^training failed: "):
        launch._fit(config, RunDir(config.run_dir), "a1")
    assert len(attempts.use_gpu) == num_attempts


def test_a_machine_of_which_there_was_notice_counts_for_nothing(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    """Neither though no worker ever looked, nor a second one that is gone before workers began again."""
    config = make_config(max_failures=0)
    run = RunDir(config.run_dir)
    run.folder.make()
    attempts = Attempts(monkeypatch, cluster.shows("node 1"), cluster.shows("node 2"), end)
    with pytest.raises(RunError, match="that is all"):
        launch._fit(config, run, "a1")
    assert len(attempts.use_gpu) == 3
    warnings = [record["message"] for record in run.read_metrics() if record["event"] == "warning"]
    assert [" (0 of at most 0 failures): " in message for message in warnings] == [True] * 2


def test_a_failure_long_after_a_machine_was_taken_away_counts(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    config = make_config(max_failures=0)
    monkeypatch.setattr(preemptions, "TOLD_LATE_S", 0.05)
    attempts = Attempts(monkeypatch, lambda: (cluster.shows("node 1")(), cluster.shows()(), time.sleep(0.1)))
    with pytest.raises(RunError, match=r"^training failed: "):
        launch._fit(config, RunDir(config.run_dir), "a1")
    assert len(attempts.use_gpu) == 1


def test_a_cluster_that_does_not_answer_loses_no_machines() -> None:
    def unreachable() -> list[str]:
        raise ConnectionError("the head is gone")

    seen = preemptions.Preemptions(unreachable)
    seen.look()
    assert seen.recent() == []


def test_workers_start_again_on_gpus_though_the_machine_that_had_them_is_gone(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(max_failures=2)
    gpus = iter([1.0, 0.0, 0.0])
    monkeypatch.setattr("ray_apps.train.checks.available", lambda: {"CPU": 2.0, "GPU": next(gpus)})
    attempts = Attempts(monkeypatch, *[lambda: None] * 3)
    with pytest.raises(RunError):
        launch._fit(config, RunDir(config.run_dir), "a1")
    assert attempts.use_gpu == [True] * 3
