"""The `train` section of a recipe."""

from typing import Literal, Self

from pydantic import Field, model_validator

from data_prep.config import DiskPath, Settings


class LoraSettings(Settings):
    """Low-rank adapters on frozen weights (Hu et al. 2021)."""

    r: int = Field(8, ge=1)
    """Rank of an adapter."""
    alpha: int = Field(16, ge=1)
    """Scale: the adapter is multiplied by alpha / r."""
    dropout: float = Field(0.05, ge=0.0, lt=1.0)
    target_modules: list[str] = Field(["q_proj", "v_proj"], min_length=1)
    """Names of the linear layers that get an adapter."""


class FsdpSettings(Settings):
    """Fully sharded data parallelism (FSDP2), one group per decoder layer."""

    reshard_after_forward: bool = True
    """Free gathered weights after the forward pass. Without it: less traffic, more memory (as ZeRO-2)."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimiser state in host memory."""


class CheckpointSettings(Settings):
    """When to save, and how many checkpoints stay."""

    every_steps: int = Field(100, ge=1)
    keep_last: int = Field(2, ge=1)


class TrainConfig(Settings):
    """From a dataset and a base model to a run directory."""

    model: str
    """The base: a directory, an `s3://` path or a hub id."""
    dataset: DiskPath
    """Dataset directory written by `vicuna prep`."""
    run_dir: DiskPath
    """Directory of the run: checkpoints, metrics, receipt. Running again with the same one resumes."""
    output: DiskPath
    """Directory the fine-tuned model is exported to."""

    epochs: int = Field(3, ge=1)
    max_steps: int | None = Field(None, ge=1)
    """Stop after that many optimiser steps, even in the middle of an epoch. The schedule ends there too."""
    global_batch_size: int = Field(128, ge=1)
    """Rows per optimiser step, over all workers; it never depends on how many there are."""
    micro_batch_size: int = Field(1, ge=1)
    """Rows per forward pass of one worker."""

    learning_rate: float = Field(2e-5, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly."""
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)

    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the forward and backward pass. Master weights and optimiser state are fp32."""
    tf32: bool = True
    """Let a GPU round the factors of fp32 matrix products to 10 mantissa bits."""
    activation_checkpointing: bool = True
    """Recompute each decoder layer in the backward pass instead of keeping its activations."""
    attention: Literal["auto", "flash_attention_2", "sdpa"] = "auto"
    """`auto`: FlashAttention where it is installed and there is a GPU, else PyTorch's own, chat by chat."""

    strategy: Literal["fsdp"] = "fsdp"
    fsdp: FsdpSettings = FsdpSettings()
    lora: LoraSettings | None = None
    """Train adapters only; the export merges them into the base."""

    num_workers: int = Field(1, ge=1)
    use_gpu: bool | Literal["auto"] = "auto"
    """`auto`: one GPU a worker if the cluster has any GPU."""
    cpus_per_worker: int = Field(1, ge=1)
    max_failures: int = Field(10, ge=0)
    """Restarts after a worker failed, or it or its node died, before the run gives up. Preemptions do not count."""

    checkpoint: CheckpointSettings = CheckpointSettings()
    seed: int = Field(42, ge=0)
    log_every_steps: int = Field(1, ge=1)

    @property
    def gradient_accumulation_steps(self) -> int:
        """Forward passes of one worker per optimiser step."""
        return self.global_batch_size // (self.micro_batch_size * self.num_workers)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        step = self.micro_batch_size * self.num_workers
        if self.global_batch_size % step:
            raise ValueError(
                f"global_batch_size: {self.global_batch_size} is not a multiple of micro_batch_size × num_workers = "
                f"{self.micro_batch_size} × {self.num_workers} = {step}"
            )
        return self
