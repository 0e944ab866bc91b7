"""How long a step takes: floating-point operations by the share of the GPU's peak that is reached, beside traffic."""

import math
from dataclasses import dataclass

from ray_apps.train.config import TrainConfig
from ray_apps.train.plan.gpus import Gpu
from ray_apps.train.plan.memory import FP32_BYTES
from ray_apps.train.plan.tally import Anatomy
from ray_apps.train.strategies.prepare import compute_dtype

DEFAULT_MFU = 0.4
"""Share of the peak, recomputation counted as work. PaLM reached 0.58 so counted (Chowdhery et al. 2022, table 3), the
published Vicuna-7B run 0.36."""


@dataclass(frozen=True)
class Duration:
    """Of one optimiser step, in seconds; traffic runs beside the computation, so the longer one counts."""

    flops_per_token: float
    compute_s: float
    traffic_s: float

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return max(self.compute_s, self.traffic_s)


def step_duration(anatomy: Anatomy, config: TrainConfig, gpu: Gpu, row_tokens: float, mfu: float) -> Duration:
    """Time of a step of `global_batch_size` rows of `row_tokens` tokens each, attended to as one chat a row.

    Left out: AdamW, which reads and writes 28 bytes a weight; loading; saving; traffic between machines.
    """
    per_token = flops_per_token(anatomy, config, row_tokens)
    tokens = config.global_batch_size * row_tokens
    compute_s = per_token * tokens / (config.worker_range[1] * gpu.peak_tflops * 1e12 * mfu)
    rows = math.ceil(config.global_batch_size / config.worker_range[1])
    num_micro_batches = math.ceil(rows / config.micro_batch_size)
    traffic_s = num_micro_batches * _traffic_bytes(anatomy, config) / (gpu.link_gb_per_s * 1e9)
    return Duration(per_token, compute_s, traffic_s)


def flops_per_token(anatomy: Anatomy, config: TrainConfig, row_tokens: float) -> float:
    """Floating-point operations of forward and backward pass (Kaplan et al. 2020: 6 a weight that is trained).

    A weight costs 2 forwards, 2 for the gradient of its input and, if it is trained, 2 for its own; 2 again where the
    forward pass is run twice, as the loss always is. Causal attention of s tokens costs 2 · s · width forwards, twice
    that backwards.
    """
    again = 2 if config.activation_checkpointing is True else 0
    layer = (4 + again) * anatomy.layer_parameters + 2 * anatomy.layer_trainable
    attention = (6 + again) * row_tokens * anatomy.attention_width
    output = 6 * anatomy.output_parameters + 2 * anatomy.output_trainable
    return anatomy.num_layers * (layer + attention) + output


def _traffic_bytes(anatomy: Anatomy, config: TrainConfig) -> float:
    """Bytes a worker receives for one micro-batch: weights once or twice, and the sums of gradients."""
    compute_bytes = compute_dtype(config).itemsize
    layers = anatomy.num_layers * anatomy.layer_parameters
    again = layers if config.fsdp.reshard_after_forward else 0
    gathered = compute_bytes * (anatomy.parameters + again)
    others = (config.worker_range[1] - 1) / config.worker_range[1]
    return others * (gathered + FP32_BYTES * anatomy.trainable)
