"""A few optimiser steps in one process, each timed; the last line of the output is what was measured, as JSON.

    python -m benchmarks.support.train_steps ours|full|autocast|bf16 BASE DATASET ROWS_PER_STEP STEPS

`ours` is the step of the training loop with selective activation checkpoints, `full` with full ones. The others are
what one writes with transformers alone, on the same packed rows: activation checkpointing, the model's own loss, AdamW;
in bf16 by autocast from fp32 weights, or all in bf16.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from ray_apps.machine import peak_memory, usable_cpus
from ray_apps.train.config import TrainConfig
from ray_apps.train.data import RowOrder, RowStore, collate
from ray_apps.train.loop import train_step
from ray_apps.train.strategies.build import build_strategy

LEARNING_RATE = 2e-5
CPU = torch.device("cpu")

Step = Callable[[int], float]
"""Does the optimiser step of that number; returns its tokens."""


def ours(config: TrainConfig, rows: RowStore, order: RowOrder) -> Step:
    strategy = build_strategy(config, CPU)
    return lambda step: train_step(strategy, rows, order, step, config)["tokens"]


def transformers_step(config: TrainConfig, rows: RowStore, order: RowOrder, *, autocast: bool) -> Step:
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32 if autocast else torch.bfloat16)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)

    def step(number: int) -> float:
        tokens = 0
        for index in order.batch(number):
            batch = collate([rows[int(index)]])
            labels = torch.cat([torch.full((1, 1), -100), batch.targets[:, :-1]], dim=1)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(input_ids=batch.input_ids, labels=labels).loss / order.global_batch_size
            loss.backward()
            tokens += batch.input_ids.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return tokens

    return step


def main() -> None:
    contender, base, dataset, rows_per_step, steps = sys.argv[1:]
    torch.set_num_threads(usable_cpus())
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        config = TrainConfig(
            model=base,
            dataset=dataset,
            run_dir=f"{folder}/run",
            output=f"{folder}/model",
            global_batch_size=int(rows_per_step),
            learning_rate=LEARNING_RATE,
            fsdp={"reshard_after_forward": False},
            activation_checkpointing="selective" if contender == "ours" else True,
        )
        rows = RowStore(Path(dataset) / "train")
        order = RowOrder(len(rows), config.global_batch_size, config.seed)
        if contender in ("ours", "full"):
            step = ours(config, rows, order)
        else:
            step = transformers_step(config, rows, order, autocast=contender == "autocast")
        seconds, tokens = [], 0.0
        for number in range(int(steps)):
            started = time.perf_counter()
            tokens += step(number)
            seconds.append(time.perf_counter() - started)
    per_row = tokens / (int(steps) * config.global_batch_size)
    print(json.dumps({"seconds": seconds, "tokens_per_row": per_row, "peak_bytes": peak_memory(CPU)}))


if __name__ == "__main__":
    main()
