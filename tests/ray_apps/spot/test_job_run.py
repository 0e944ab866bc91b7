"""A job that is followed over clusters and jobs that live in dicts, and a run directory that is real."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import SpotError
from ray_apps.run_dir import RunDir
from ray_apps.spot.bring_up import Launcher
from ray_apps.spot.clusters import Sight, SilentError
from ray_apps.spot.job import JobSettings
from ray_apps.spot.job_run import JobRun
from ray_apps.spot.launch_state import Cluster
from ray_apps.spot.progress import Progress, read_progress
from tests.ray_apps.spot.test_bring_up import AT_ONCE, Clock, Fakes, launcher

STEPS = 20


@dataclass
class FakeJobs:
    """A step of each job is done at each look, and every fifth is saved; `faults` are its ends before the last step.

    `at`: what happens at a step.
    """

    fakes: Fakes
    run: RunDir
    faults: list[int] = field(default_factory=list)
    at: dict[int, Callable[[], None]] = field(default_factory=dict)
    jobs: dict[str, str] = field(default_factory=dict)  # by cluster and id, the status
    submitted: list[tuple[str, str]] = field(default_factory=list)
    step: int = 0
    saved: int = 0

    def submit(self, cluster: Cluster, job: str, recipe: str) -> None:
        assert recipe == "the recipe"
        key = self._key(cluster, job)
        assert key not in self.jobs
        self.jobs[key] = "RUNNING"
        self.submitted.append((cluster.zone, job))
        self.run.forget_to_stop()
        self.step = self.saved
        self._record(event="start", step=self.step, num_steps=STEPS)

    def job_status(self, cluster: Cluster, job: str) -> str | None:
        key = self._key(cluster, job)
        if self.jobs.get(key) == "RUNNING":
            self.jobs[key] = self._work()
        return self.jobs.get(key)

    def job_log(self, cluster: Cluster, job: str) -> str:
        self._key(cluster, job)
        return "Traceback: out of luck"

    def _work(self) -> str:
        if self.run.is_asked_to_stop():
            self._save()
            return "FAILED"
        if self.faults and self.step == self.faults[0]:
            self.faults.pop(0)
            return "FAILED"
        self.step += 1
        self._record(step=self.step, loss=1.0, seconds=600.0)
        if self.step % 5 == 0:
            self._save()
        if (happens := self.at.pop(self.step, None)) is not None:
            happens()
        return "SUCCEEDED" if self.step == STEPS else "RUNNING"

    def _save(self) -> None:
        self.saved = self.step
        aside = self.run.begin_checkpoint(self.step, "writer")
        aside.write("weights", str(self.step))
        self.run.commit_checkpoint(self.step, "writer", {"weights": {"bytes": aside.sizes()["weights"], "sha256": ""}})
        self._record(event="checkpoint", step=self.step)

    def _record(self, **values: Any) -> None:
        self.run.append_metrics({"time": time.time(), **values})

    def _key(self, cluster: Cluster, job: str) -> str:
        if not self.fakes.look(cluster).has_head:
            raise SilentError("no head")
        return f"{cluster.name} {job}"


class Room:
    def __init__(self, path: Path, **settings: Any) -> None:
        self.path, self.settings = path, settings
        self.fakes, self.clock, self.run = Fakes(), Clock(), RunDir(path / "run")
        self.run.take_over("writer")
        self.run.checkpoints.make()
        self.jobs = FakeJobs(self.fakes, self.run)

    def launcher(self) -> Launcher:
        return launcher(self.path, self.fakes, self.clock, **self.settings)

    def finish(self) -> str:
        return JobRun(self.launcher(), self.jobs, "the recipe", self.run).finish()


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_a_job_is_run_to_its_end_and_nothing_is_left(room: Room) -> None:
    assert room.finish().endswith("1 starts")
    assert room.jobs.submitted == [("east-b", "run-1")]
    assert (room.jobs.step, room.fakes.machines) == (STEPS, {})
    assert room.launcher().state.first_start is None  # the next run has limits of its own


def test_a_region_that_dies_and_the_run_goes_on_elsewhere(room: Room) -> None:
    room.jobs.at = {7: room.fakes.machines.clear, 12: room.fakes.machines.clear}
    room.finish()
    assert room.jobs.submitted == [("east-b", "run-1"), ("east-a", "run-2"), ("west-a", "run-3")]
    starts = [record["step"] for record in room.run.read_metrics() if record.get("event") == "start"]
    assert starts == [0, 5, 10]
    assert room.fakes.machines == {}


def test_a_job_that_fails_is_started_again_while_it_gets_further(room: Room) -> None:
    room.jobs.faults = [1, 1, 6, 6, 12]
    room.finish()
    assert len(room.jobs.submitted) == 6


def test_a_job_that_fails_at_the_same_step_is_given_up(room: Room) -> None:
    room.jobs.faults = [6] * 9
    with pytest.raises(SpotError, match=r"(?s)run-3 failed, 3 times after step 5; its last lines:\nTraceback: out of"):
        room.finish()
    assert len(room.jobs.submitted) == 3
    assert room.fakes.machines == {}


def test_a_failure_of_which_the_log_does_not_come_counts_once(room: Room) -> None:
    room.jobs.faults = [6]
    silent = iter([True, True])

    def job_log(cluster: Cluster, job: str) -> str:
        if next(silent, False):
            raise SilentError("ssh: connection timed out")
        return "out of luck"

    room.jobs.job_log = job_log  # type: ignore[method-assign]
    room.finish()
    assert len(room.jobs.submitted) == 2


def test_a_store_that_is_busy_ends_nothing(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.jobs.faults = [6]
    latest, busy = room.run.latest_checkpoint, iter([OSError("SlowDown"), ValueError("no answer")])

    def latest_checkpoint() -> Any:
        if error := next(busy, None):
            raise error
        return latest()

    monkeypatch.setattr(room.run, "latest_checkpoint", latest_checkpoint)
    room.finish()
    assert len(room.jobs.submitted) == 2


def test_whatever_goes_wrong_with_the_last_save_all_is_taken_down(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    def ask_to_stop(launch: str = "") -> None:
        raise RuntimeError("nobody thought of that")

    room.jobs.at = {7: interrupt}
    monkeypatch.setattr(room.run, "ask_to_stop", ask_to_stop)
    with pytest.raises(RuntimeError):
        room.finish()
    assert room.fakes.machines == {}


def test_clusters_to_which_no_job_can_be_handed_stop(room: Room) -> None:
    def submit(cluster: Cluster, job: str, recipe: str) -> None:
        raise SilentError("the token is wrong")

    room.jobs.submit = submit  # type: ignore[method-assign]
    with pytest.raises(SpotError, match="5 clusters in a row did no work"):
        room.finish()
    assert room.fakes.machines == {}


def test_a_job_that_fails_for_want_of_machines_waits_for_them(room: Room) -> None:
    room.settings = {"policy": {"patience_h": 5}}

    def lose() -> None:
        room.fakes.machines["run_east-b"] = Sight(True, 0)
        room.jobs.faults = [7]
        room.clock.sleep = lambda seconds: (setattr(room.clock, "time", room.clock.time + seconds), back())[0]  # type: ignore[method-assign]

    def back() -> None:
        if room.clock.time > 1e9 + 1000:
            room.fakes.machines["run_east-b"] = Sight(True, 2)

    room.jobs.at = {7: lose}
    room.finish()
    assert room.jobs.submitted == [("east-b", "run-1"), ("east-b", "run-2")]


def test_a_limit_stops_the_run_with_a_checkpoint(room: Room) -> None:
    room.settings = {"policy": {**AT_ONCE, "max_cost_usd": 15.0}, "poll_s": 120.0}
    with pytest.raises(SpotError, match="max_cost_usd"):
        room.finish()
    assert room.jobs.saved == room.jobs.step < STEPS
    assert room.fakes.machines == {}
    assert room.launcher().state.usd(room.clock.time) <= 15.0
    room.settings = {}
    room.finish()
    starts = [record["step"] for record in room.run.read_metrics() if record.get("event") == "start"]
    assert starts == [0, starts[1]]
    assert starts[1] > 0


def test_ctrl_c_saves_and_takes_all_down(room: Room) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    room.jobs.at = {7: interrupt}
    with pytest.raises(KeyboardInterrupt):
        room.finish()
    assert room.jobs.saved >= 7
    assert room.fakes.machines == {}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("when", ["before it is handed over", "after", "while it runs", "when it is done"])
def test_a_launcher_that_was_killed_goes_on_with_the_same_job(room: Room, when: str) -> None:
    submit, status = room.jobs.submit, room.jobs.job_status
    victim = JobRun(room.launcher(), room.jobs, "the recipe", room.run)

    def die() -> Any:
        raise Killed

    def kill() -> None:
        victim._stop = victim.launcher.down = die  # type: ignore[method-assign]  # no code runs after SIGKILL
        raise Killed

    def dying_submit(cluster: Cluster, job: str, recipe: str) -> None:
        if when == "after":
            submit(cluster, job, recipe)
        kill()

    def dying_status(cluster: Cluster, job: str) -> str | None:
        told = status(cluster, job)
        if told == "SUCCEEDED":
            kill()
        return told

    if when in ("before it is handed over", "after"):
        room.jobs.submit = dying_submit  # type: ignore[method-assign]
    elif when == "while it runs":
        room.jobs.at = {7: kill}
    else:
        room.jobs.job_status = dying_status  # type: ignore[method-assign]
    with pytest.raises(Killed):
        victim.finish()
    assert set(room.fakes.machines) == {"run_east-b"}
    room.jobs.submit, room.jobs.job_status = submit, status  # type: ignore[method-assign]
    room.finish()
    assert room.jobs.submitted == [("east-b", "run-1")]
    assert (room.jobs.step, room.fakes.machines) == (STEPS, {})


def test_progress() -> None:
    job = JobSettings(work_h=10.0)
    assert read_progress([], job) == Progress(10.0)
    start = {"event": "start", "time": 1.0, "step": 0, "num_steps": 100}
    steps = [{"time": 2.0 + step, "step": step, "loss": 3.0, "seconds": 36.0} for step in range(1, 11)]
    few = read_progress([start, *steps[:2]], job)
    assert (few.left_h, few.step, few.num_steps) == (pytest.approx(9.8), 2, 100)
    saved = {"event": "checkpoint", "time": 9.0, "step": 6}
    told = read_progress([start, *steps[:8], saved, *steps[8:]], job)
    assert (told.left_h, told.at_risk_h, told.loss, told.told_at) == (
        pytest.approx(0.9),
        pytest.approx(0.04),
        3.0,
        12.0,
    )
    resumed = read_progress([start, *steps, saved, {**start, "step": 6}], job)
    assert (resumed.step, resumed.at_risk_h, resumed.left_h) == (6, 0.0, pytest.approx(9.4))
    every_second = [{**step, "seconds": 72.0} for step in steps[1::2]]
    assert read_progress([start, *every_second], job).left_h == pytest.approx(0.9)
