"""Of several groups of workers on one run directory, only the last that began writes checkpoints.

There may be several when a command is given twice, or again while workers of one that was killed live on. Nobody waits
for a lease to run out, and no clocks are compared: each group of workers writes its name to the run directory when it
begins, and one that finds another name there ends.
"""

import uuid

import torch.distributed as dist

from ray_apps.run_dir import RunDir
from ray_apps.train.errors import TakenOver


def take_over(run: RunDir, launch: str | None) -> str:
    """Make these workers those that write; their name. Every rank must call it.

    `launch`: the command that started them; without one they take the run from whoever has it.

    Raises:
        TakenOver: another command has the run by now.
    """
    told: list[str | None] = [None, None]
    if dist.get_rank() == 0:
        workers = uuid.uuid4().hex[:8]
        lost = run.lost_to(launch) if launch else None
        if lost is None:
            run.take_over(launch or workers, workers)
        told = [workers, lost]
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise TakenOver(told[1])
    return str(told[0])
