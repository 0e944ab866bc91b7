"""When to save, a pure policy, and how: sharded, written aside, committed with a marker."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ray_apps.run_dir import RunDir
from ray_apps.train.state import TrainState
from ray_apps.train.strategies.base import Strategy

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavePolicy:
    """Save after every `every_steps` steps and after the last one."""

    every_steps: int
    num_steps: int

    def is_due(self, step: int) -> bool:
        """Whether to save now that `step` steps are done."""
        return step % self.every_steps == 0 or step == self.num_steps


def save_checkpoint(run: RunDir, strategy: Strategy, state: TrainState, keep_last: int) -> str | None:
    """Write the checkpoint of `state.step` and commit it. Every rank must call it, or the others wait for ever.

    Returns why that failed, on every rank the same, or None. After a failure the checkpoints are what they were before.
    """
    first, aside = dist.get_rank() == 0, run.aside(state.step)
    problem = _together(lambda: first and run.begin_checkpoint(state.step))
    if problem is None:
        problem = _together(lambda: save({**strategy.state(), **state.to_saved(dist.get_rank())}, checkpoint_id=aside))
    if problem is None:
        problem = _together(lambda: first and run.commit_checkpoint(state.step, keep_last))
    if problem is None:
        return None
    if first:
        shutil.rmtree(aside, ignore_errors=True)
    # The serializer may fail with an error of its own where the disk is full.
    return f"{problem} ({shutil.disk_usage(run.path).free / 1e9:.1f} GB are free at {run.path})"


def _together(part: Callable[[], object]) -> str | None:
    """Run `part` on every rank and wait for all of them; what failed on the first rank on which something did."""
    problem = None
    try:
        part()
    except OSError as error:
        problem = str(error)
    except CheckpointException as error:
        problem = str(next(iter(error.failures.values()))[0])
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next((found for found in problems if found is not None), None)


def restore_checkpoint(run: RunDir, strategy: Strategy) -> TrainState:
    """Load the newest complete checkpoint, written at whatever world size; a fresh state if there is none.

    Rank 0 chooses, so that all ranks load the same one. Every rank must call it.
    """
    rank = dist.get_rank()
    chosen = [run.latest_checkpoint() if rank == 0 else None]
    dist.broadcast_object_list(chosen, src=0)
    if chosen[0] is None:
        return TrainState()
    step, directory = chosen[0]
    extra = TrainState(step=step).to_saved(rank)
    known = FileSystemReader(directory).read_metadata().state_dict_metadata
    wanted = {name: value for name, value in extra.items() if name in known}
    saved = {**strategy.state(), **wanted}
    load(saved, checkpoint_id=directory)
    strategy.take_over(saved)
    state = TrainState.from_saved({**extra, **saved}, rank)
    logger.info("resumed from %s at step %d", directory, state.step)
    return state
