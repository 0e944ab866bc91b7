"""Train a small random Llama for two steps and print the most bytes that tensors took: a process of its own.

`python -m tests.ray_apps.train.plan.measure_peak CASE RENDEZVOUS`; CASE is JSON: `shape` (a Llama config), `tokens` of
a row, and fields of the `train` section.

PyTorch's profiler records each allocation and release of its CPU allocator with the time and the size. Their running
sum is exact: no pages, no fragments, no other process. What is there when a step begins is part of it.

More workers than one are PyTorch's fake process group, of which this process is the first rank: it has the tensors that
it would have with others, and collectives move nothing. Gloo would add copies of its own that NCCL does not make.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, LlamaConfig

from ray_apps.train.attention import choose_attention
from ray_apps.train.config import TrainConfig
from ray_apps.train.data import Batch
from ray_apps.train.strategies.fsdp import FsdpStrategy

TRAINING = "training"


def full_row(tokens: int, vocab_size: int) -> Batch:
    """One chat that fills the row, every token trained on."""
    ids = torch.randint(vocab_size, (1, tokens))
    ends = torch.tensor([0, tokens], dtype=torch.int32)
    return Batch(ids, ids.clone(), torch.ones(1, tokens), torch.arange(tokens)[None], ends, tokens)


def train_two_steps(case: dict[str, Any]) -> None:
    """What a worker does, without the data and the checkpoints."""
    config, shape = TrainConfig.parse(case["train"]), LlamaConfig(**case["shape"])
    device = torch.device("cpu")
    attention = choose_attention("sdpa", device)
    model = AutoModelForCausalLM.from_config(shape, attn_implementation=attention, dtype=torch.float32)
    strategy = FsdpStrategy(config, device)
    strategy.wrap(model)
    batch = full_row(case["tokens"], shape.vocab_size)
    with record_function(TRAINING):
        for _ in range(2):
            for _ in range(config.global_batch_size // (config.micro_batch_size * config.num_workers)):
                strategy.backward(batch, 1.0, last=True)
            strategy.step(1e-4)


def peak_bytes(profiler: profile) -> int:
    """The most bytes alive at any time of the training."""
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = profiler.profiler.kineto_results.events()
    begin = next(event.start_ns() for event in events if event.name() == TRAINING)
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    live = peak = 0
    for time, size in changes:
        live += size
        peak = max(peak, live) if time >= begin else live
    return peak


def join_group(world_size: int, rendezvous: str) -> None:
    """Become the first of `world_size` ranks."""
    if world_size == 1:
        dist.init_process_group("gloo", init_method=Path(rendezvous).as_uri(), rank=0, world_size=1)
    else:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)


def main(case: dict[str, Any], rendezvous: str) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    join_group(case["train"].get("num_workers", 1), rendezvous)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train_two_steps(case)
    print(json.dumps({"peak_bytes": peak_bytes(profiler)}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
