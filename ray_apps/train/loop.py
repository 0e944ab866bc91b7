"""The training run on one rank, in pure torch: build, restore, iterate, step, maybe save.

Needs a process group, and knows nothing of Ray: `torchrun` or a plain process can drive it as well as a Ray worker.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from data_prep.errors import RunError
from ray_apps.run_dir import RunDir
from ray_apps.train.attention import choose_attention
from ray_apps.train.checkpoint import SavePolicy, restore_checkpoint, save_checkpoint
from ray_apps.train.config import TrainConfig
from ray_apps.train.data import RowOrder, RowStore, collate
from ray_apps.train.evaluation import held_out_loss
from ray_apps.train.metrics import FAILED, MetricsWriter
from ray_apps.train.optimizer import learning_rate
from ray_apps.train.strategies.base import Strategy
from ray_apps.train.strategies.build import build_strategy


class WouldFailAgain(RunError):  # noqa: N818 - named for what it is
    """Every rank raises it at the same step. Also recorded as the run's last event."""


class Diverged(WouldFailAgain):
    """Loss or gradients are no longer finite."""


class SavesFailed(WouldFailAgain):
    """No checkpoint could be saved, several times in a row or at the end."""


def count_steps(num_rows: int, config: TrainConfig) -> int:
    """Optimiser steps of the whole run.

    Raises:
        RunError: the dataset has fewer rows than one global batch.
    """
    if num_rows < config.global_batch_size:
        raise RunError(
            f"train.global_batch_size: {config.global_batch_size} is more than the dataset's {num_rows} rows; "
            f"valid: 1 to {num_rows}"
        )
    whole = config.epochs * (num_rows // config.global_batch_size)
    return whole if config.max_steps is None else min(whole, config.max_steps)


def train_step(strategy: Strategy, rows: RowStore, order: RowOrder, step: int, config: TrainConfig) -> dict[str, float]:
    """One optimiser step on this rank's part of global batch `step`; returns its measures, the same on every rank.

    The loss is the mean over the trained tokens of the *global* batch, whatever the accumulation and the world size.

    Raises:
        Diverged: naming the chats of the batch.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    global_weight = float(rows.target_weights[order.batch(step)].sum())
    scale = world_size / global_weight if global_weight else 0.0
    sums = torch.zeros(2, dtype=torch.float64)
    micro_batches = order.micro_batches(step, rank, world_size, config.micro_batch_size)
    for number, indices in enumerate(micro_batches, start=1):
        batch = collate([rows[index] for index in indices])
        loss = strategy.backward(batch, scale, last=number == len(micro_batches))
        sums += torch.tensor([float(loss), batch.input_ids.numel()], dtype=torch.float64)
    rate = learning_rate(step, count_steps(len(rows), config), config)
    grad_norm = strategy.step(rate)
    loss_sum, tokens = _sum_over_ranks(sums)
    mean = loss_sum / global_weight if global_weight else 0.0
    if not (math.isfinite(mean) and math.isfinite(grad_norm)):
        chats = sorted({chat for index in order.batch(step) for chat in rows[int(index)].document_ids})
        raise Diverged(f"step {step + 1}: loss {mean}, gradient norm {grad_norm}; the chats of its batch: {chats}")
    return {"loss": mean, "grad_norm": grad_norm, "learning_rate": rate, "tokens": tokens}


def _sum_over_ranks(sums: torch.Tensor) -> tuple[float, ...]:
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = sums.to(device)
    dist.all_reduce(total)
    return tuple(total.tolist())


def run_training(config: TrainConfig, device: torch.device, after_save: Callable[[dict[str, float]], None]) -> None:
    """Train until the last step, from the newest complete checkpoint if there is one.

    `after_save` is called on every rank after each committed checkpoint, with the measures of its step.

    A save that fails is recorded, and training goes on from memory until `checkpoint.max_failed_saves` in a row did.

    Raises:
        WouldFailAgain: it diverged, or its saves failed.
    """
    torch.set_num_threads(config.cpus_per_worker)
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    run, rows = RunDir(config.run_dir), RowStore(Path(config.dataset) / "train")
    held_out = RowStore(Path(config.dataset) / "eval")
    order = RowOrder(len(rows), config.global_batch_size, config.seed)
    num_steps = count_steps(len(rows), config)
    policy = SavePolicy(config.checkpoint.every_steps, num_steps)

    strategy = build_strategy(config, device)
    state = restore_checkpoint(run, strategy)
    metrics = MetricsWriter(run, active=dist.get_rank() == 0, resumed_step=state.step)
    attention = choose_attention(config.attention, device)
    metrics.event("start", step=state.step, num_steps=num_steps, pids=_pids(), attention=attention)
    num_failed = 0
    for step in range(state.step, num_steps):
        started = time.monotonic()
        with _recorded(metrics):
            measures = train_step(strategy, rows, order, step, config)
        state.step = step + 1
        elapsed = time.monotonic() - started
        if state.step % config.log_every_steps == 0 or state.step == num_steps:
            metrics.step(step=state.step, **measures, tokens_per_s=measures["tokens"] / elapsed)
        if config.eval_every_steps and (state.step % config.eval_every_steps == 0 or state.step == num_steps):
            metrics.held_out(state.step, held_out_loss(strategy, held_out, config.micro_batch_size))
        if policy.is_due(state.step):
            problem = save_checkpoint(run, strategy, state, config.checkpoint.keep_last)
            num_failed = 0 if problem is None else num_failed + 1
            if problem is None:
                metrics.event("checkpoint", step=state.step)
                after_save({"step": state.step, **measures})
                continue
            metrics.event("save_failed", step=state.step, message=problem)
            if num_failed > config.checkpoint.max_failed_saves or state.step == num_steps:
                with _recorded(metrics):
                    raise SavesFailed(f"step {state.step}: saving failed, {num_failed} in a row: {problem}")
    metrics.event("finish", step=state.step)
    metrics.close()


@contextmanager
def _recorded(metrics: MetricsWriter) -> Iterator[None]:
    """Make what ends the run its last event."""
    try:
        yield
    except WouldFailAgain as error:
        metrics.event(FAILED, message=str(error))
        raise


def _pids() -> list[int]:
    """Process id of each rank."""
    pids: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(pids, os.getpid())
    return pids
