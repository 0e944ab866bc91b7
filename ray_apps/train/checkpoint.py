"""How a run is saved and restored: sharded, beside the training, written aside and committed with a marker."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ray_apps.run_dir import Checkpoint, Files, RunDir
from ray_apps.train.config import CheckpointSettings
from ray_apps.train.shards import ShardReader, ShardWriter
from ray_apps.train.state import TrainState
from ray_apps.train.strategies.base import Strategy
from ray_apps.train.strategies.pieces import Piece

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveResult:
    """How a save ended; `problem` is the same on every rank. `total_s`: from its start until it was complete."""

    step: int
    problem: str | None
    blocked_s: float
    total_s: float


class Saver:
    """Saves on every rank. Each rank must make the same calls, or the others wait for ever.

    Asynchronously, `start` only copies this rank's shards to host memory; a thread writes and commits the copy. Its
    collectives have a process group of their own, so that they never meet those of training.
    """

    def __init__(self, run: RunDir, writer: str, strategy: Strategy, settings: CheckpointSettings) -> None:
        self._run = run
        self._writer = writer
        self._strategy = strategy
        self._settings = settings
        self._group = dist.new_group(backend="gloo")
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=torch.cuda.is_available(),
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=torch.cuda.is_available(),
            )
        )
        self._pending: Future[SaveResult] | None = None

    @property
    def is_pending(self) -> bool:
        """Whether a save was started and its result not taken yet."""
        return self._pending is not None

    @property
    def is_done(self) -> bool:
        """Whether this rank's part of the pending save is over."""
        return self._pending is not None and self._pending.done()

    def start(self, state: TrainState, eval_loss: float | None = None) -> None:
        """Begin to save `state.step`; the save before must be over. The state may change as soon as this returns."""
        assert self._pending is None
        started, self._pending = time.monotonic(), Future()
        live = {**self._strategy.state(), **state.to_saved(dist.get_rank())}
        if not self._settings.asynchronous:
            self._run_save(self._pending, live, state.step, eval_loss, started, None)
            return
        staged = _with_pieces(self._stager.stage(_without_pieces(live)), live)
        blocked_s = time.monotonic() - started
        threading.Thread(
            target=self._run_save,
            args=(self._pending, staged, state.step, eval_loss, started, blocked_s),
            name="save-checkpoint",
            daemon=True,
        ).start()

    def result(self) -> SaveResult:
        """Wait until the pending save is over, and forget it."""
        assert self._pending is not None
        result, self._pending = self._pending.result(), None
        return result

    def _run_save(
        self,
        future: Future[SaveResult],
        saved: dict[str, Any],
        step: int,
        eval_loss: float | None,
        started: float,
        blocked_s: float | None,
    ) -> None:
        try:
            problem = self._write(saved, step, eval_loss)
            total_s = time.monotonic() - started
            future.set_result(SaveResult(step, problem, total_s if blocked_s is None else blocked_s, total_s))
        except BaseException as error:
            future.set_exception(error)

    def _write(self, saved: dict[str, Any], step: int, eval_loss: float | None) -> str | None:
        """Why saving failed, on every rank the same, or None. After a failure the checkpoints are what they were."""
        run, first = self._run, dist.get_rank() == 0
        aside = run.aside(step, self._writer)
        writer = ShardWriter(aside)
        files: list[Files] = [{}] * dist.get_world_size()

        def commit() -> Checkpoint:
            keep = {"keep_last": self._settings.keep_last, "keep_best": self._settings.keep_best}
            known = {name: file for part in files for name, file in part.items()}
            return run.commit_checkpoint(step, self._writer, known, eval_loss=eval_loss, **keep)

        problem = self._together(lambda: first and run.begin_checkpoint(step, self._writer))
        if problem is None:
            problem = self._together(lambda: save(saved, storage_writer=writer, process_group=self._group))
        dist.all_gather_object(files, writer.files, group=self._group)
        if problem is None:
            problem = self._together(lambda: first and commit())
        if problem is not None and first:
            problem = _with_room(problem, run)
            _together(aside.remove, None)
        told: str | None = _from_first(problem, self._group)
        return told

    def _together(self, part: Callable[[], object]) -> str | None:
        return _together(part, self._group)


def _without_pieces(live: Any) -> Any:
    """The state but for what torch's stager does not know."""
    if isinstance(live, dict):
        return {name: _without_pieces(value) for name, value in live.items()}
    return None if isinstance(live, Piece) else live


def _with_pieces(staged: Any, live: Any) -> Any:
    """What was staged, with a copy of each piece in its place."""
    if isinstance(live, dict):
        return {name: _with_pieces(staged[name], value) for name, value in live.items()}
    return live.to("cpu", copy=True) if isinstance(live, Piece) else staged


def _with_room(problem: str, run: RunDir) -> str:
    """The serializer may fail with an error of its own where the disk is full."""
    free = run.folder.free_bytes()
    return problem if free is None else f"{problem} ({free / 1e9:.1f} GB are free at {run.folder})"


def _together(part: Callable[[], object], group: dist.ProcessGroup | None) -> str | None:
    """Run `part` on every rank of `group` and wait for all of them; what failed on the first rank on which it did.

    Without a group: on this rank alone.
    """
    problem = None
    try:
        part()
    except OSError as error:
        problem = str(error)
    except CheckpointException as error:
        problem = str(next(iter(error.failures.values()))[0])
    if group is None:
        return problem
    problems: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(problems, problem, group=group)
    return next((found for found in problems if found is not None), None)


def _from_first(value: Any, group: dist.ProcessGroup) -> Any:
    """Rank 0's value, on every rank."""
    values = [value]
    dist.broadcast_object_list(values, src=0, group=group)
    return values[0]


def restore_checkpoint(run: RunDir, strategy: Strategy) -> TrainState:
    """Load the newest complete checkpoint whose bytes are those written, at whatever world size; else a fresh state.

    Rank 0 chooses, so that all ranks load the same one; each rank reads its share of the files to check them. Every
    rank must call it.
    """
    group = dist.new_group(backend="gloo")
    for checkpoint in _from_first(run.complete_checkpoints() if dist.get_rank() == 0 else None, group):
        damage = _find_damage(checkpoint, group)
        if damage is None:
            return _load(checkpoint, strategy)
        if dist.get_rank() == 0:
            run.condemn(checkpoint, damage)
    return TrainState()


def _find_damage(checkpoint: Checkpoint, group: dist.ProcessGroup) -> str | None:
    """What is wrong with its bytes, on every rank the same. A file that cannot be read now is an error instead."""
    found: list[str | None] = [None] * dist.get_world_size()
    mine = sorted(checkpoint.files)[dist.get_rank() :: dist.get_world_size()]
    dist.all_gather_object(found, checkpoint.damage(mine), group=group)
    return next((damage for damage in found if damage is not None), None)


def _load(checkpoint: Checkpoint, strategy: Strategy) -> TrainState:
    rank, reader = dist.get_rank(), ShardReader(checkpoint.folder)
    extra = TrainState(step=checkpoint.step).to_saved(rank)
    known = reader.read_metadata().state_dict_metadata
    saved = {**strategy.state(), **{name: value for name, value in extra.items() if name in known}}
    load(saved, storage_reader=reader)
    strategy.take_over(saved)
    state = TrainState.from_saved({**extra, **saved}, rank)
    logger.info("resumed from %s at step %d", checkpoint.folder, state.step)
    return state
