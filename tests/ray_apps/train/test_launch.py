"""What counts as a failure, and what a restart keeps, with Ray Train's answers given beforehand."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ray.train import WorkerGroupError

from data_prep.errors import RunError
from ray_apps.run_dir import RunDir
from ray_apps.train import launch
from ray_apps.train.config import TrainConfig


class Attempts:
    """In the place of Ray Train's trainer: each attempt does what it is told to, and fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *doings: Callable[[], object]) -> None:
        self.use_gpu: list[bool] = []
        self._doings: Iterator[Callable[[], object]] = iter(doings)
        monkeypatch.setattr(launch, "_trainer", self._trainer)

    def _trainer(self, config: TrainConfig, run: RunDir, launch: str, *, use_gpu: bool) -> "Attempts":
        self.use_gpu.append(use_gpu)
        return self

    def fit(self) -> Any:
        next(self._doings)()
        raise WorkerGroupError("the workers failed", {0: RuntimeError("Connection reset by peer")})


def events(run: RunDir, *names: str) -> Callable[[], None]:
    return lambda: [run.append_metrics({"event": name}) for name in names] and None


def test_failures_are_counted_and_told(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(max_failures=1)
    run = RunDir(config.run_dir)
    run.folder.make()
    attempts = Attempts(monkeypatch, *[events(run, "start")] * 2)
    with pytest.raises(RunError, match=r"^training failed: "):
        launch._fit(config, run, "a1")
    assert len(attempts.use_gpu) == 2
    (warning,) = [record for record in run.read_metrics() if record["event"] == "warning"]
    assert warning["message"].startswith("workers are lost and start again (1 of at most 1 failures): ")


def test_a_machine_of_which_there_was_notice_counts_for_nothing(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(max_failures=0)
    run = RunDir(config.run_dir)
    run.folder.make()
    attempts = Attempts(
        monkeypatch, events(run, "start", "notice"), events(run, "start", "notice"), events(run, "start")
    )
    with pytest.raises(RunError):
        launch._fit(config, run, "a1")
    assert len(attempts.use_gpu) == 3


def test_metrics_that_cannot_be_read_end_no_run(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(run: RunDir) -> list[dict[str, Any]]:
        raise OSError("AWS Error NETWORK_CONNECTION")

    config = make_config(max_failures=2)
    attempts = Attempts(monkeypatch, *[lambda: None] * 3)
    monkeypatch.setattr(RunDir, "read_metrics", unreachable)
    with pytest.raises(RunError, match=r"^training failed: "):
        launch._fit(config, RunDir(config.run_dir), "a1")
    assert len(attempts.use_gpu) == 3


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
