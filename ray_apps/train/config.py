"""The `train` section of a recipe."""

import os
import re
from itertools import permutations
from pathlib import PurePath, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from data_prep.config import DiskPath, Settings, real_path
from data_prep.storage import is_remote


def _place(path: str) -> PurePath:
    """Where `path` is; what is on S3 is never below what is on a disk."""
    return PurePosixPath(path) if is_remote(path) else real_path(path)


class LoraSettings(Settings):
    """Low-rank adapters on frozen weights (Hu et al. 2021)."""

    r: int = Field(8, ge=1)
    """Rank of an adapter."""
    alpha: int = Field(16, ge=1)
    """Scale: the adapter is multiplied by alpha / r."""
    dropout: float = Field(0.05, ge=0.0, lt=1.0)
    """Share of an adapter's inputs that is left out at random."""
    target_modules: list[str] = Field(["q_proj", "v_proj"], min_length=1)
    """Names of the linear layers that get an adapter."""
    export: Literal["merged", "adapter"] = "merged"
    """What is exported: the base with the adapters added to it, or the adapters alone, as peft reads them."""


class FsdpSettings(Settings):
    """Fully sharded data parallelism (FSDP2), one group per decoder layer."""

    reshard_after_forward: bool = True
    """Free gathered weights after the forward pass. Without it: less traffic, more memory (as ZeRO-2)."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimiser state in host memory."""


class DeepspeedSettings(Settings):
    """The Zero Redundancy Optimizer (ZeRO)."""

    stage: Literal[1, 2, 3] = 2
    """What is spread over the workers: 1 optimiser state, 2 gradients too, 3 weights too."""
    offload: Literal["none", "optimizer", "optimizer_and_weights"] = "none"
    """What is kept in host memory. Weights can be only if they are spread: with stage 3."""

    @model_validator(mode="after")
    def _can_offload(self) -> Self:
        if self.offload == "optimizer_and_weights" and self.stage != 3:
            raise ValueError(
                f"offload: 'optimizer_and_weights' is not valid with stage {self.stage}; expected stage 3, "
                "or offload 'none' or 'optimizer'"
            )
        return self


class CheckpointSettings(Settings):
    """When to save, and how many checkpoints stay."""

    every_steps: int | None = Field(100, ge=1)
    """Optimiser steps between two saves; the last step is always saved."""
    every_s: PositiveFloat | Literal["auto"] | None = None
    """Seconds between two saves, beside `every_steps`. `auto`: those that lose the least time, from what saves cost."""
    mean_time_between_preemptions_s: float | None = Field(None, gt=0)
    """For `every_s: auto`: seconds that the workers run on average until one of their machines is taken away."""
    asynchronous: bool = True
    """Copy the state to host memory and write the copy beside the training, which goes on meanwhile."""
    keep_last: int = Field(2, ge=1)
    """Newest complete checkpoints that stay."""
    keep_best: int = Field(0, ge=0)
    """Checkpoints that stay because their loss on the rows held out is the lowest; each such look is then saved."""
    max_failed_saves: int = Field(3, ge=0)
    """Saves in a row that may fail, on a full disk for instance, before the run gives up; the last is tried again."""
    preemption_poll_s: float = Field(2.0, ge=0)
    """Seconds between two looks at whether a worker's machine is about to be taken away."""

    @model_validator(mode="after")
    def _saves_at_all(self) -> Self:
        if self.every_steps is None and self.every_s is None:
            raise ValueError("every_steps: null needs every_s: seconds, or 'auto'")
        if (self.every_s == "auto") != (self.mean_time_between_preemptions_s is not None):
            raise ValueError("mean_time_between_preemptions_s: goes with every_s: 'auto', and only with it")
        return self


class TrainConfig(Settings):
    """From a dataset and a base model to a run directory."""

    model: str
    """The base: a directory, an `s3://` path or a hub id."""
    dataset: DiskPath
    """Dataset directory written by `vicuna prep`."""
    run_dir: str = Field(min_length=1)
    """Checkpoints, metrics, receipt; a directory or an `s3://` path. Running again with the same one resumes."""
    output: DiskPath
    """Directory the fine-tuned model is exported to."""
    export: Literal["last", "best"] = "last"
    """The checkpoint that is exported: the newest, or that of the lowest loss on the rows held out."""

    epochs: int = Field(3, ge=1)
    """Times the dataset is gone through, each in another order; an incomplete last batch is left out."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after that many optimiser steps, even in the middle of an epoch. The schedule ends there too."""
    global_batch_size: int = Field(128, ge=1)
    """Rows per optimiser step, over all workers; it never depends on how many there are."""
    micro_batch_size: int = Field(1, ge=1)
    """Rows per forward pass of one worker."""

    learning_rate: float = Field(2e-5, gt=0)
    """The highest, reached after the warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How it falls after the warm-up: to 0 at the last step, or not at all."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly."""
    weight_decay: float = Field(0.0, ge=0)
    """Of AdamW (Loshchilov & Hutter 2019), as are the next three."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the mean of gradients."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the mean of their squares."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to the root of that mean."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients of a larger norm are scaled down to it."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit` keeps its state in 8 bits (Dettmers et al. 2022); in one process only."""

    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the forward and backward pass. Master weights and optimiser state are fp32."""
    tf32: bool = True
    """Let a GPU round the factors of fp32 matrix products to 10 mantissa bits."""
    deterministic: bool = False
    """On a GPU, the kernels that give the same bits every time, which may be slower. A CPU's always do."""
    activation_checkpointing: bool | Literal["selective"] = True
    """Recompute each decoder layer in the backward pass instead of keeping its activations; `selective`: all of it but
    matrix products and attention, whose results are kept."""
    compile: bool = False
    """Compile attention, MLP and norms of the decoder layers with torch.compile; it starts more slowly."""
    attention: Literal["auto", "flash_attention_2", "sdpa"] = "auto"
    """`auto`: FlashAttention where it is installed and there is a GPU, else as `sdpa`: one causal call a chat."""

    strategy: Literal["fsdp", "deepspeed"] = "fsdp"
    """How the model is spread over the workers."""
    fsdp: FsdpSettings = FsdpSettings()
    """Settings of the strategy of that name, as are the next."""
    deepspeed: DeepspeedSettings = DeepspeedSettings()
    """ZeRO stage and offload."""
    lora: LoraSettings | None = None
    """Train adapters only."""
    quantize_base: Literal["nf4"] | None = None
    """Keep the frozen base in 4 bits under the adapters (QLoRA, Dettmers et al. 2023); in one process only."""

    num_workers: PositiveInt | Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] = 1
    """Worker processes; `[min, max]`: as many as there is room for, more or fewer as machines come and go."""
    resize_every_s: float = Field(60.0, gt=0)
    """With `[min, max]`: seconds between two looks at whether there is room for more."""
    hang_timeout_s: float = Field(1800.0, gt=0)
    """A worker without progress for so long is named, and all are restarted from the newest checkpoint."""
    use_gpu: bool | Literal["auto"] = "auto"
    """`auto`: one GPU a worker if the cluster has any GPU."""
    cpus_per_worker: int = Field(1, ge=1)
    """CPUs reserved for a worker, and its threads."""
    max_failures: int = Field(10, ge=0)
    """Restarts after a worker failed, or it or its node died, before the run gives up. Preemptions do not count."""

    checkpoint: CheckpointSettings = CheckpointSettings()
    """When to save."""
    seed: int = Field(42, ge=0, lt=2**63)
    """Of the order of rows, of new adapters and of dropout."""
    eval_every_steps: int | None = Field(None, ge=1)
    """Optimiser steps between two looks at the loss on the rows held out; also after the last. Off if not given."""
    log_every_steps: int = Field(1, ge=1)
    """Optimiser steps between two lines of `metrics.jsonl`."""

    @field_validator("run_dir")
    @classmethod
    def _can_be_opened(cls, run_dir: str) -> str:
        if not is_remote(run_dir):
            return os.path.expanduser(run_dir)
        if not re.fullmatch(r"s3://[^/]+/+[^/].*", run_dir):
            raise ValueError(f"{run_dir!r} is not valid; expected a path on a disk or s3://bucket/key")
        return run_dir

    @model_validator(mode="after")
    def _directories_are_apart(self) -> Self:
        names = ("model", "dataset", "run_dir", "output")
        places = {name: _place(getattr(self, name)) for name in names}
        for (one, place), (other, above) in permutations(places.items(), 2):
            if place.is_relative_to(above) and {one, other} & {"run_dir", "output"}:
                raise ValueError(f"{one}: {getattr(self, one)!r} is not outside of {other} {getattr(self, other)!r}")
        return self

    @model_validator(mode="after")
    def _knows_the_best(self) -> Self:
        if self.export == "best" and not self.checkpoint.keep_best:
            raise ValueError("export: 'best' is not valid with checkpoint.keep_best 0; expected 'last', or 1 or more")
        if self.checkpoint.keep_best and not self.eval_every_steps:
            raise ValueError(
                "eval_every_steps: is required by checkpoint.keep_best, which compares the losses measured"
            )
        return self

    @model_validator(mode="after")
    def _divides(self) -> Self:
        fewest, most = self.worker_range
        if fewest > most:
            raise ValueError(f"num_workers: [{fewest}, {most}] is not valid; expected [min, max]")
        if fewest < most:
            if most > self.global_batch_size:
                raise ValueError(
                    f"num_workers: {most} workers are more than the {self.global_batch_size} rows of a step"
                )
            return self  # any number of workers shares the batch out, evenly or not
        step = self.micro_batch_size * most
        if self.global_batch_size % step:
            raise ValueError(
                f"global_batch_size: {self.global_batch_size} is not a multiple of micro_batch_size × num_workers = "
                f"{self.micro_batch_size} × {most} = {step}"
            )
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        workers = self.num_workers
        return (workers, workers) if isinstance(workers, int) else (workers[0], workers[1])

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return self.worker_range[0] < self.worker_range[1]
