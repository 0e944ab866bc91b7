"""The training run on one rank, in pure torch: build, restore, iterate, step, maybe save.

Needs a process group, and knows nothing of Ray: `torchrun` or a plain process can drive it as well as a Ray worker.
"""

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_prep.errors import RunError
from ray_apps.machine import device_name, matmul_gflops, peak_memory
from ray_apps.run_dir import RunDir
from ray_apps.train.attention import choose_attention
from ray_apps.train.checkpoint import restore_checkpoint
from ray_apps.train.config import TrainConfig
from ray_apps.train.data import RowOrder, RowStore, load_batch
from ray_apps.train.errors import Diverged, TakenOver, WouldFailAgain
from ray_apps.train.evaluation import held_out_loss
from ray_apps.train.fencing import take_over
from ray_apps.train.metrics import FAILED, STOPPED, MetricsWriter
from ray_apps.train.optimizer import learning_rate
from ray_apps.train.repeats import errors_recorded, refuse_to_repeat
from ray_apps.train.saving import Keeper, Notice, Outside
from ray_apps.train.strategies.base import Strategy
from ray_apps.train.strategies.build import build_strategy
from ray_apps.train.watchdog import Watchdog


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
        batch = load_batch(rows, indices)
        loss = strategy.backward(batch, scale, last=number == len(micro_batches))
        sums += torch.tensor([float(loss), batch.input_ids.numel() if indices else 0], dtype=torch.float64)
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


def run_training(
    config: TrainConfig,
    device: torch.device,
    after_save: Callable[[dict[str, Any]], object] = lambda measures: None,
    notice: Callable[[], Notice | None] = lambda: None,
    *,
    launch: str | None = None,
) -> str:
    """Train until the last step, from the newest sound checkpoint if there is one; the event with which it ended.

    `after_save` and `notice`: see `Outside`; `launch`: see `take_over`. SIGTERM, where this is the main thread of a
    process, and a request in the run directory end the run after the step under way and a save. A save that fails is
    recorded, and training goes on from memory until `checkpoint.max_failed_saves` in a row did.

    Raises:
        WouldFailAgain: it diverged, its saves failed, or others took it over.
    """
    torch.set_num_threads(config.cpus_per_worker)
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    if config.deterministic:
        make_deterministic()
    run = RunDir(config.run_dir)
    writer = take_over(run, launch)
    refuse_to_repeat(run)
    with Watchdog(run, config.hang_timeout_s) as watchdog, errors_recorded(run, watchdog):
        return _train(config, writer, device, Outside(after_save, notice), watchdog)


def _train(config: TrainConfig, writer: str, device: torch.device, outside: Outside, watchdog: Watchdog) -> str:
    """Build, restore, iterate, step, maybe save."""
    run, rows = RunDir(config.run_dir), RowStore(Path(config.dataset) / "train")
    held_out = RowStore(Path(config.dataset) / "eval")
    order = RowOrder(len(rows), config.global_batch_size, config.seed)
    num_steps = count_steps(len(rows), config)

    started = time.monotonic()
    strategy = build_strategy(config, device)
    built = time.monotonic()
    watchdog.progress(0)
    state = restore_checkpoint(run, strategy)
    restored = time.monotonic()
    watchdog.progress(state.step)
    metrics = MetricsWriter(
        run,
        active=dist.get_rank() == 0,
        resumed_step=state.step,
        every_steps=config.log_every_steps,
        last_step=num_steps,
    )
    spent = {"build_s": built - started, "restore_s": restored - built}
    attention = choose_attention(config.attention, device, config.precision)
    places = _places(device)
    if changed := _changed_devices(run, places["devices"]):
        metrics.event("warning", message=f"the run goes on with other devices than before: {changed}")
    metrics.event("start", step=state.step, num_steps=num_steps, **places, **spent, attention=attention)
    keeper = Keeper(config, writer, strategy, metrics, outside, num_steps, on_try=watchdog.progress)
    ended = "finish"
    with _recorded(metrics, keeper), stop_signal() as stop:
        for step in range(state.step, num_steps):
            before = time.monotonic()
            measures = train_step(strategy, rows, order, step, config)
            state.step = step + 1
            metrics.step(state.step, measures, time.monotonic() - before)
            keeper.restart_s = keeper.restart_s or time.monotonic() - started
            watchdog.progress(state.step)
            eval_loss = None
            if _is_judged(config, state.step, num_steps):
                eval_loss = held_out_loss(
                    strategy, held_out, config.micro_batch_size, on_batch=lambda: watchdog.progress(state.step)
                )
                metrics.held_out(state.step, eval_loss)
                if not math.isfinite(eval_loss):
                    raise Diverged(f"step {state.step}: the loss on the rows held out is {eval_loss}")
            judges_next = _is_judged(config, state.step + 1, num_steps)
            if keeper.after_step(state, measures, stop=stop.is_set(), eval_loss=eval_loss, judges_next=judges_next):
                ended = STOPPED
                break
    spent = {"outside_s": keeper.outside_s, "elapsed_s": time.monotonic() - started}
    metrics.event(ended, step=state.step, **spent, **_device(config, device))
    metrics.close()
    return ended


def _is_judged(config: TrainConfig, step: int, num_steps: int) -> bool:
    """Whether the loss on the rows held out is to be looked at after `step`."""
    every = config.eval_every_steps
    return every is not None and (step % every == 0 or step == num_steps)


def make_deterministic() -> None:
    """Have PyTorch, cuBLAS and FlashAttention take the kernels that give the same bits every time, or stop at others.

    With `warn_only` PyTorch's memory-efficient attention would stay as it is.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"
    torch.use_deterministic_algorithms(True)


@contextmanager
def _recorded(metrics: MetricsWriter, keeper: Keeper) -> Iterator[None]:
    """Make what ends the run its last event, once the save under way is over."""
    try:
        yield
    except TakenOver:
        raise
    except WouldFailAgain as error:
        with suppress(WouldFailAgain):
            keeper.settle()
        metrics.event(FAILED, message=str(error))
        raise


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM sets while the block runs, where a handler can be set: in a process's main thread."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda signum, frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _device(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """What this rank computes with, the memory it took, and the rate of a matrix product in the run's precision."""
    name = device_name(device) if device.type == "cuda" else "CPU"
    peak_bytes = peak_memory(device)
    rate = matmul_gflops(device, config.precision, budget_s=0.3) * 1e9 if dist.get_rank() == 0 else 0.0
    return {"device": name, "matmul_flops": rate, "num_workers": dist.get_world_size(), "peak_bytes": peak_bytes}


def _places(device: torch.device) -> dict[str, list[Any]]:
    """Process id, host name and device of each rank."""
    places: list[tuple[int, str, str]] = [(0, "", "")] * dist.get_world_size()
    dist.all_gather_object(places, (os.getpid(), socket.gethostname(), device_name(device)))
    return {
        name: list(values) for name, values in zip(("pids", "hosts", "devices"), zip(*places, strict=True), strict=True)
    }


def _changed_devices(run: RunDir, devices: list[str]) -> str | None:
    """Kinds of devices at the last start and now; None if they are the same and on other ranks than 0."""
    starts = [record["devices"] for record in run.read_metrics() if "devices" in record] if dist.get_rank() == 0 else []
    before, now = (", ".join(sorted(set(kinds))) for kinds in (starts[-1] if starts else devices, devices))
    return f"{before} → {now}" if before != now else None
