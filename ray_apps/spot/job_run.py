"""A training job on whatever cluster the policy has: handed over, followed, and resumed elsewhere from the store.

What is done is in the run directory in the store; a job that is handed over again goes on from there. Before machines
are left that still work, the run is asked to save and end. Knows no Ray, no cloud.
"""

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field

from data_prep.errors import SpotError
from ray_apps.run_dir import RunDir
from ray_apps.spot.bring_up import Launcher
from ray_apps.spot.clusters import Jobs, SilentError
from ray_apps.spot.launch_state import Cluster
from ray_apps.spot.limits import STOP_S
from ray_apps.spot.progress import Progress, read_progress

logger = logging.getLogger(__name__)

TOLD_S = 60.0
"""Seconds between two lines that say how far it is."""
MOST_DONE_H = 0.01
"""What is left at least until the job says that it is done: the model has to be written."""


@dataclass
class JobRun:
    """`recipe`: YAML, as the job gets it. `run`: the run directory it names."""

    launcher: Launcher
    jobs: Jobs
    recipe: str
    run: RunDir
    _progress: Progress = field(init=False)
    _told_at: float = field(init=False, default=0.0)
    _told_before: float | None = field(init=False, default=None)
    _last_step_at: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._progress = Progress(self.launcher.config.job.work_h)

    def finish(self) -> str:
        """See the job through, wherever it runs, and take everything down; what it took, in words.

        Raises:
            SpotError: a limit is reached, there are no machines, or the job fails by itself.
            KeyboardInterrupt: the run was given time to save.
        """
        try:
            while not self._is_done():
                pass
        except BaseException as error:
            logger.warning("ending: %s", str(error) or type(error).__name__)
            try:
                with suppress(KeyboardInterrupt):  # a second Ctrl-C waits for no checkpoint
                    self._stop()
            finally:
                self.launcher.down()
            raise
        self.launcher.down()
        return self.launcher.forget()

    def _is_done(self) -> bool:
        """Look after everything once."""
        is_online = self._read_progress()
        cluster, progress = self.launcher.state.cluster, self._progress
        left_h = max(progress.left_h, MOST_DONE_H)
        if not self.launcher.state.job:
            self._told_before = progress.told_at
        if cluster and self._has_begun():
            self.launcher.has_worked()
        elif cluster:
            left_h += self.launcher.config.job.cold_start_h
        if self.launcher.step(left_h, progress.at_risk_h, is_online=is_online, stop=self._stop):
            return False
        if cluster := self.launcher.state.cluster:
            try:
                if self._tend(cluster):
                    return True
                self.launcher.heard()
            except SilentError as error:
                self.launcher.silent(error, is_online=is_online)
        self._tell()
        self.launcher.sleep(self.launcher.config.poll_s)
        return False

    def _tend(self, cluster: Cluster) -> bool:
        """Hand the job over if the cluster has none that runs; whether it is done."""
        state = self.launcher.state
        if state.job and self._has_done_steps():
            return False
        status = self.jobs.job_status(cluster, state.job) if state.job else None
        if status == "SUCCEEDED":
            return True
        if status in ("PENDING", "RUNNING") or cluster.lost_at is not None:
            return False
        failures = {} if status is None else self._count_failure(cluster)
        if status is not None or not state.job:
            number = state.num_jobs + 1
            self.launcher.holdings.update(job=f"{self.launcher.config.name}-{number}", num_jobs=number, **failures)
        logger.info("%s is handed over to %s", self.launcher.state.job, cluster.name)
        self.jobs.submit(cluster, self.launcher.state.job, self.recipe)
        return False

    def _has_done_steps(self) -> bool:
        """Whether there are steps since the last look: then the job works, and need not be asked for over SSH."""
        before, self._last_step_at = self._last_step_at, self._progress.told_at
        return before is not None and self._last_step_at != before

    def _count_failure(self, cluster: Cluster) -> dict[str, int]:
        """What the state is to know of it. Raises SilentError if it cannot be told after which step."""
        state = self.launcher.state
        try:
            latest = self.run.latest_checkpoint()
        except (OSError, ValueError) as error:
            raise SilentError(f"{self.run.folder}: {error}") from error
        step = latest.step if latest else 0
        num_failures = state.num_failures + 1 if step == state.failed_step else 1
        log = self.jobs.job_log(cluster, state.job)
        if num_failures > self.launcher.config.max_failures:
            raise SpotError(f"{state.job} failed, {num_failures} times after step {step}; its last lines:\n{log}")
        logger.warning("%s failed after step %d:\n%s", state.job, step, log)
        return {"num_failures": num_failures, "failed_step": step}

    def _has_begun(self) -> bool:
        """Whether there are steps that were done there, not before."""
        return self._progress.told_at not in (None, self._told_before)

    def _stop(self) -> None:
        """Have the run save and end, if it runs."""
        cluster, job = self.launcher.state.cluster, self.launcher.state.job
        if cluster is None or not job or cluster.lost_at is not None or not self._has_begun():
            return
        try:
            if self.jobs.job_status(cluster, job) != "RUNNING":
                return
            logger.info("%s is asked to save", job)
            self.run.ask_to_stop()
            until = self.launcher.now() + STOP_S
            while self.jobs.job_status(cluster, job) == "RUNNING" and self.launcher.now() < until:
                self.launcher.sleep(self.launcher.config.poll_s)
        except (SilentError, OSError, ValueError) as error:
            logger.warning("%s is left without a last checkpoint: %s", job, error)

    def _read_progress(self) -> bool:
        """Whether the store answers."""
        try:
            self._progress = read_progress(self.run.read_metrics(), self.launcher.config.job)
        except (OSError, ValueError) as error:  # pyarrow raises either
            logger.warning("%s: %s", self.run.folder, error)
            return False
        return True

    def _tell(self) -> None:
        now = time.monotonic()
        if self.launcher.state.cluster is not None and now - self._told_at >= TOLD_S:
            self._told_at = now
            state = self.launcher.state
            place = "" if state.cluster is None else f"{state.cluster.zone}, {state.cluster.purchase}, "
            logger.info("%s: %s%s; $%.2f spent", state.job, place, self._progress, state.usd(self.launcher.now()))
