"""When to save, a pure policy, and how: sharded, written aside, committed with a marker."""

import logging
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemReader

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


def save_checkpoint(run: RunDir, strategy: Strategy, state: TrainState, keep_last: int) -> None:
    """Write the checkpoint of `state.step` and commit it. Every rank must call it, or the barriers hang."""
    rank = dist.get_rank()
    if rank == 0:
        run.begin_checkpoint(state.step)
    dist.barrier()
    strategy.save(run.aside(state.step), state.to_saved(rank))
    dist.barrier()
    if rank == 0:
        run.commit_checkpoint(state.step, keep_last)
    dist.barrier()


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
    state = TrainState.from_saved({**extra, **strategy.load(directory, wanted)}, rank)
    logger.info("resumed from %s at step %d", directory, state.step)
    return state
