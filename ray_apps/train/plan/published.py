"""The published Vicuna-7B run beside what is planned for the same settings here, and why they differ.

The published trainer wraps LLaMA-7B in FSDP1 through transformers' `Trainer`. All that is known of its memory is what
the allocator had *reserved*. Each term of the difference is arithmetic; none is fitted, and what is left over is said.
"""

from dataclasses import dataclass

from ray_apps.train.config import TrainConfig
from ray_apps.train.objective import CHUNK_TOKENS
from ray_apps.train.plan.duration import DEFAULT_MFU
from ray_apps.train.plan.memory import FP32_BYTES
from ray_apps.train.plan.plan import Plan, Rows, make_plan
from ray_apps.train.plan.serving import serving_memory
from ray_apps.train.plan.shapes import find_model_config

MIB, GIB, GB = 2**20, 2**30, 10**9

RESERVED_MIB = 71_518
NUM_STEPS = 112
STEP_S = 7.99
GPU = "a800-80g"
ROWS = Rows(2048, 910, 2048, "the 910 dummy conversations, each padded to 2,048 tokens")
LOGITS_BYTES_PER_VALUE = 2 + 4 + 4 + 4 + 4
"""bf16 logits, their fp32 copy, the shifted copy, its log-softmax, and the gradient of that."""


@dataclass(frozen=True)
class Term:
    """One part of a difference."""

    words: str
    mib: float


@dataclass(frozen=True)
class Comparison:
    """The plan of the published settings, and the way from its peak to what was published."""

    plan: Plan
    terms: list[Term]
    mfu: float
    """Share of the GPUs' peak that the published run reached, recomputation counted."""

    @property
    def unexplained_mib(self) -> float:
        """What the terms leave of the published figure."""
        return RESERVED_MIB - sum(term.mib for term in self.terms)


def compare(mfu: float = DEFAULT_MFU) -> Comparison:
    """Plan the published run and account for the difference."""
    config = TrainConfig.parse(
        {
            "model": "huggyllama/llama-7b",
            "dataset": "dataset",
            "run_dir": "run",
            "output": "model",
            "epochs": 2,
            "global_batch_size": 16,
            "micro_batch_size": 1,
            "num_workers": 2,
        }
    )
    plan = make_plan(config, GPU, ROWS, mfu)
    return Comparison(plan, _terms(plan), mfu * plan.duration.compute_s / STEP_S)


def _terms(plan: Plan) -> list[Term]:
    ours, trainable = plan.memory.peak.total_bytes, plan.anatomy.trainable
    vocabulary = plan.anatomy.output_parameters * 2 // (plan.anatomy.input_bytes // ROWS.context_length)
    logits = ROWS.context_length * vocabulary * LOGITS_BYTES_PER_VALUE
    return [
        Term(f"planned here: live tensors at the peak, {plan.memory.peak.name}", ours / MIB),
        Term(
            "AdamW over lists of tensors, PyTorch's default, makes one more fp32 tensor of each weight's size while it "
            f"steps (torch.optim: ~ sizeof(params)): 4 bytes × {trainable:,} / 2. The fused one here makes none",
            FP32_BYTES * trainable / plan.num_gpus / MIB,
        ),
        Term(
            f"whole logits, {ROWS.context_length:,} × {vocabulary:,}, in bf16, in fp32, shifted, as log-softmax and as "
            f"its gradient: {LOGITS_BYTES_PER_VALUE} bytes each. Here they are made {CHUNK_TOKENS} tokens at a time",
            logits / MIB,
        ),
    ]


REMARKS = (
    "The published figure is reserved memory: PyTorch's allocator keeps the blocks of the backward pass while the "
    "optimiser steps, so that what never lives at the same time adds up in it. The plan is what lives at one time.",
    "That trainer's optimiser and logits follow from how its libraries work; its memory was published as one number. "
    "What is left over may be fragments of blocks and FSDP1's flat weights and gradients; no factor is put in for it.",
    "Its time is of rows padded to 2,048 tokens, as is the plan's beside it; rows packed here hold real tokens.",
)


@dataclass(frozen=True)
class ServingFigure:
    """One published figure, in its own words, and ours: weights and one cache of 2,048 tokens."""

    words: str
    published_gb: int
    weights_bytes: int
    cache_bytes: int


def serving_figures() -> list[ServingFigure]:
    """The published needs of memory for serving; figures in GB, of 10^9 bytes, as published."""
    sizes = {size: find_model_config(f"huggyllama/llama-{size}")[0] for size in ("7b", "13b")}
    memory = {size: serving_memory(config, ROWS.context_length) for size, config in sizes.items()}
    published = [
        ("7B on a GPU", "7b", "bf16", 14),
        ("13B on a GPU", "13b", "bf16", 28),
        ("7B on a CPU", "7b", "fp32", 30),
        ("13B on a CPU", "13b", "fp32", 60),
        ("13B in 8 bits on a card of 16 GB", "13b", "int8", 16),
    ]
    return [
        ServingFigure(f"{words}, {precision}", figure, memory[size].weights_bytes[precision], memory[size].cache_bytes)
        for words, size, precision, figure in published
    ]
