"""What happens between two steps: saves begun and ended, notices of preemption, requests to stop."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ray_apps.run_dir import RunDir
from ray_apps.train.checkpoint import Saver
from ray_apps.train.config import TrainConfig
from ray_apps.train.errors import SavesFailed, TakenOver
from ray_apps.train.metrics import MetricsWriter
from ray_apps.train.save_policy import SaveCosts, SavePolicy
from ray_apps.train.state import TrainState
from ray_apps.train.strategies.base import Strategy

logger = logging.getLogger(__name__)

URGENT_MARGIN = 1.25
"""An urgent save, and a step before it, must be expected to be over in the time left divided by this."""
RECENT_STEPS = 20
"""Of which the longest tells how long the next may take, apart for those that an evaluation follows."""
TAKEN_LATE_S = 5.0
"""Seconds after its deadline for which a machine is waited for to be taken away."""
LOOK_S = 1.0
"""Seconds between two looks at the run directory."""
SAVE_AGAIN_S = 2.0
"""Seconds from the failure of a run's last save until it is tried again."""


@dataclass(frozen=True)
class Notice:
    """Some ranks' machines will be taken away at `deadline`, in seconds since 1970."""

    deadline: float
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Outside:
    """What the loop tells and hears. Both calls are made by every rank at the same steps.

    `after_save` gets the measures of a checkpoint's step once it is complete. `notice` answers the same on every rank.
    """

    after_save: Callable[[dict[str, Any]], object] = lambda measures: None
    notice: Callable[[], Notice | None] = lambda: None


class Keeper:
    """Keeps a run's checkpoints. Every rank decides the same: rank 0's clock counts, and one rank can stop all."""

    def __init__(
        self,
        config: TrainConfig,
        writer: str,
        strategy: Strategy,
        metrics: MetricsWriter,
        outside: Outside,
        num_steps: int,
        on_try: Callable[[int], object] = lambda step: None,
    ) -> None:
        self._on_try = on_try
        self._settings = config.checkpoint
        self._policy = SavePolicy(config.checkpoint, num_steps)
        self._run = RunDir(config.run_dir)
        self._writer = writer
        self._saver = Saver(self._run, writer, strategy, config.checkpoint)
        self._metrics = metrics
        self._outside = outside
        self._num_steps = num_steps
        self._group = dist.new_group(backend="gloo")
        self._costs: SaveCosts | None = None
        self._measures: dict[str, Any] = {}
        self._num_failed = 0
        self._saved_step = self._complete_step = -1
        self._waited_s = 0.0
        self._saved_at = self._polled_at = self._looked_at = self._left_at = time.monotonic()
        self._step_s, self._judged_s = (deque[float](maxlen=RECENT_STEPS) for _ in range(2))
        self._has_stepped = False
        self._heeded: Notice | None = None
        self._deadline: float | None = None
        self.restart_s = 0.0
        """From the start of the loop to the end of its first step."""
        self.outside_s = 0.0
        """Seconds spent in the calls of `Outside`."""

    def after_step(
        self,
        state: TrainState,
        measures: dict[str, Any],
        *,
        stop: bool,
        eval_loss: float | None = None,
        judges_next: bool = False,
    ) -> bool:
        """Save if it is time to, and heed what comes from outside; whether the run is to end here.

        `judges_next`: an evaluation follows the step to come.

        Raises:
            SavesFailed: more saves in a row failed than `max_failed_saves`.
            TakenOver: others go on with the run.
        """
        if self._has_stepped:  # the first step compiles
            (self._step_s if eval_loss is None else self._judged_s).append(time.monotonic() - self._left_at)
        self._has_stepped = True
        try:
            return self._keep(state, measures, stop, eval_loss, judges_next)
        finally:
            self._left_at = time.monotonic()

    def _keep(
        self, state: TrainState, measures: dict[str, Any], stop: bool, eval_loss: float | None, judges_next: bool
    ) -> bool:
        judged = eval_loss is not None and self._settings.keep_best > 0
        since_save_s = time.monotonic() - self._saved_at
        is_due = self._policy.is_due(state.step, since_save_s, self._costs, tried=self._saved_step >= 0)
        asked_to_stop, lost = self._look()
        wish = self._agree(
            lost=lost is not None,
            save=self._is_first(judged or is_due),
            poll=self._is_first(time.monotonic() - self._polled_at >= self._settings.preemption_poll_s),
            stop=stop or asked_to_stop,
            busy=self._saver.is_pending and not self._saver.is_done,
        )
        if wish["lost"]:
            raise TakenOver(lost or "the run was taken over")
        if self._saver.is_pending and not wish["busy"]:
            self._settle()
        if wish["poll"]:
            self._heed(state, measures, eval_loss)
        if wish["save"]:
            self._save(state, measures, eval_loss)
        if wish["stop"] or state.step == self._num_steps:
            self._save_last(state, measures, eval_loss)
        elif self._deadline is not None:
            self._leave_in_time(self._deadline, state, measures, eval_loss, judges_next)
        return wish["stop"]

    def _leave_in_time(
        self,
        deadline: float,
        state: TrainState,
        measures: dict[str, Any],
        eval_loss: float | None,
        judges_next: bool,
    ) -> None:
        """Save once more, when one more step and a save after it would come too late, and sit out what is left.

        A step begun now would be thrown away with the machine. How long the first evaluation takes is not known: there
        is a save before it, too. Every rank has the same deadline.
        """
        took = self._judged_s if judges_next else self._step_s
        late = time.time() + URGENT_MARGIN * max(took, default=0.0) + self._urgent_s() >= deadline
        wish = self._agree(leave=self._is_first(late), gone=self._is_first(time.time() >= deadline))
        if not wish["leave"]:
            if not took:
                self._save(state, measures, eval_loss)
                self.settle()
            return
        self._deadline = None
        if not wish["gone"]:
            self._save(state, measures, eval_loss)
            self.settle()
        time.sleep(max(0.0, deadline - time.time()) + TAKEN_LATE_S)

    def _urgent_s(self) -> float:
        return URGENT_MARGIN * self._costs.total_s if self._costs else 0.0

    def settle(self) -> None:
        """Wait for the save under way."""
        if self._saver.is_pending:
            self._settle()

    def _agree(self, **votes: bool) -> dict[str, bool]:
        """Of each question, whether any rank says yes."""
        counted = torch.tensor(list(votes.values()), dtype=torch.int32)
        dist.all_reduce(counted, dist.ReduceOp.MAX, group=self._group)
        return dict(zip(votes, counted.bool().tolist(), strict=True))

    @staticmethod
    def _is_first(value: bool) -> bool:
        return value and dist.get_rank() == 0

    def _look(self, *, at_once: bool = False) -> tuple[bool, str | None]:
        """On rank 0, now and then: whether the run is asked to stop, and how it was lost to others."""
        if dist.get_rank() != 0 or (time.monotonic() - self._looked_at < LOOK_S and not at_once):
            return False, None
        self._looked_at = time.monotonic()
        try:
            return self._run.is_asked_to_stop(), self._run.lost_to(self._writer)
        except OSError as error:  # S3 may be out of reach for a while
            logger.warning("%s cannot be read: %s", self._run.folder, error)
            return False, None

    def _heed(self, state: TrainState, measures: dict[str, Any], eval_loss: float | None) -> None:
        """Answer a new notice with a checkpoint at once, if it can be complete before the deadline."""
        self._polled_at = time.monotonic()
        notice = self._timed(self._outside.notice)
        if notice is None or notice == self._heeded:
            return
        self._heeded = notice
        left_s = notice.deadline - time.time()
        in_time = self._agree(in_time=self._is_first(left_s >= self._urgent_s()))["in_time"]
        self._metrics.event("notice", step=state.step, ranks=list(notice.ranks), left_s=left_s, saved=in_time)
        if in_time:
            self._deadline = notice.deadline
            self._save(state, measures, eval_loss)
            self.settle()

    def _save(self, state: TrainState, measures: dict[str, Any], eval_loss: float | None) -> None:
        if self._saved_step != state.step:
            self._start_save(state, measures, eval_loss)

    def _save_last(self, state: TrainState, measures: dict[str, Any], eval_loss: float | None) -> None:
        """Have a complete checkpoint before the run ends: a save that fails is tried again, not made up for later.

        It has as many tries as if none had failed before.
        """
        self._num_failed = 0
        self.settle()
        is_again = False
        while self._complete_step != state.step:
            if is_again:
                time.sleep(SAVE_AGAIN_S)
            self._start_save(state, measures, eval_loss)
            self.settle()
            self._on_try(state.step)
            is_again = True

    def _start_save(self, state: TrainState, measures: dict[str, Any], eval_loss: float | None) -> None:
        waited = time.monotonic()
        self.settle()
        self._saved_at = time.monotonic()
        self._saved_step, self._measures = state.step, measures
        self._saver.start(state, eval_loss)
        self._waited_s = self._saved_at - waited
        self._metrics.blocked(time.monotonic() - self._saved_at)
        if not self._settings.asynchronous:
            self.settle()

    def _settle(self) -> None:
        waited = time.monotonic()
        result = self._saver.result()
        self._metrics.blocked(time.monotonic() - waited)
        if result.problem is None:
            self._num_failed, self._complete_step = 0, result.step
            blocked_s = result.blocked_s + self._waited_s
            self._costs = SaveCosts(blocked_s, result.total_s, self.restart_s)
            self._metrics.event("checkpoint", step=result.step, blocked_s=blocked_s, total_s=result.total_s)
            self._timed(lambda: self._outside.after_save({"step": result.step, **self._measures}))
            return
        _, lost = self._look(at_once=True)
        if self._agree(lost=lost is not None)["lost"]:
            raise TakenOver(lost or "the run was taken over")
        self._num_failed += 1
        self._metrics.event("save_failed", step=result.step, message=result.problem)
        if self._num_failed > self._settings.max_failed_saves:
            raise SavesFailed(f"step {result.step}: saving failed, {self._num_failed} in a row: {result.problem}")

    def _timed(self, call: Callable[[], Any]) -> Any:
        started = time.monotonic()
        try:
            return call()
        finally:
            self.outside_s += time.monotonic() - started
