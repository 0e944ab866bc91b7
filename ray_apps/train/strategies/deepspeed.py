"""DeepSpeed: the Zero Redundancy Optimizer, stages 1 to 3, and offload to host memory (Rajbhandari et al. 2020).

Stages 1 and 2 keep every weight on every worker and spread optimiser state (and gradients); stage 3 spreads the weights
too. Master weights and optimiser state lie in flat partitions, whose layout depends on stage and world size. What is
saved does not: `state()` gives them by the names of parameters, as pieces that fit together again at any other stage
and world size.
"""

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from ray_apps.train.config import TrainConfig
from ray_apps.train.data import Batch
from ray_apps.train.optimizer import build_optimizer, first_moments
from ray_apps.train.strategies.partitions import Place, flat_partitions, places, refresh_weights
from ray_apps.train.strategies.pieces import Piece
from ray_apps.train.strategies.prepare import cast_parameters, compute_dtype, with_loss

MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepspeedStrategy:
    """bf16 or fp32 weights for the passes, fp32 master weights and AdamW's moments in partitions."""

    engine: Any

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.device = device

    def wrap(self, model: PreTrainedModel) -> None:
        """See `Strategy`. The master weights start from the base's own values, whatever type the passes are in."""
        module = with_loss(model, self.config)
        dtype = compute_dtype(self.config)
        stored = {
            name: parameter.data
            for name, parameter in module.model.named_parameters()
            if parameter.requires_grad and parameter.dtype != dtype
        }
        cast_parameters(module, trained=dtype, frozen=dtype)
        module.train()
        optimizer = build_optimizer(module, self.config)
        settings = engine_settings(self.config, self.device)
        with _quiet():
            deepspeed = _import_deepspeed(self.device)
            deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
            if self.config.deepspeed.stage == 3:  # weight by weight: the device never holds the whole model
                deepspeed.zero.Init(module=module, config_dict_or_path=settings, dtype=dtype)
            self.engine, *_ = deepspeed.initialize(
                args=SimpleNamespace(device_rank=self.device.index or 0),
                model=module,
                optimizer=optimizer,
                config=settings,
            )
        self._begin_moments()
        self._take_masters(stored)

    @property
    def _zero(self) -> Any:
        """DeepSpeed's optimiser, which holds the partitions; AdamW is inside it."""
        return self.engine.optimizer

    def _begin_moments(self) -> None:
        """Make AdamW's state, which it would only make in its first step, so that a checkpoint can be read into it."""
        for flat in flat_partitions(self._zero):
            self._zero.optimizer.state[flat] = first_moments(flat)

    def _take_masters(self, stored: dict[str, torch.Tensor]) -> None:
        """Start from values that the type of the passes could not hold."""
        kept = self._places()
        for name, parameter in self._trained():
            if name in stored and name in kept:
                place = kept[name]
                values = stored[name].flatten().narrow(0, place.start, place.size)
                place.piece(place.flat, parameter).copy_(values)

    def backward(self, batch: Batch, scale: float, *, last: bool) -> torch.Tensor:
        """See `Strategy`."""
        self.engine.set_gradient_accumulation_boundary(last)
        loss: torch.Tensor = self.engine(batch.to(self.device))
        self.engine.backward(loss * scale, scale_wrt_gas=False)
        return loss.detach()

    def evaluate(self, batch: Batch) -> torch.Tensor:
        """See `Strategy`."""
        self.engine.eval()
        with torch.no_grad():
            loss: torch.Tensor = self.engine(batch.to(self.device))
        self.engine.train()
        return loss

    def step(self, learning_rate: float) -> float:
        """See `Strategy`. A step that is left out, since its gradients were not finite, has an infinite norm."""
        for group in self._zero.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        return float(self.engine.get_global_grad_norm()) if self.engine.was_step_applied() else float("inf")

    def state(self) -> dict[str, Any]:
        """See `Strategy`. The keys do not depend on the stage either."""
        adamw, kept = self._zero.optimizer.state, self._places()
        model: dict[str, Piece] = {}
        moments: dict[str, dict[str, Piece]] = {}
        for name, parameter in self._trained():
            place = kept.get(name)
            if place is None:
                nothing = Piece.of(torch.empty(0), 0, parameter.numel())
                model[name], moments[name] = nothing, dict.fromkeys(MOMENTS, nothing)
                continue
            model[name] = place.piece(place.flat, parameter)
            moments[name] = {moment: place.piece(adamw[place.flat][moment], parameter) for moment in MOMENTS}
        step = adamw[flat_partitions(self._zero)[0]]["step"]
        return {"model": model, "optimizer": {"state": moments, "step": step}}

    def take_over(self, state: dict[str, Any]) -> None:
        """See `Strategy`."""
        for flat in flat_partitions(self._zero):
            self._zero.optimizer.state[flat]["step"].copy_(state["optimizer"]["step"])
        refresh_weights(self._zero)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        parameters = self.engine.module.model.named_parameters()
        return [(name, parameter) for name, parameter in parameters if parameter.requires_grad]

    def _places(self) -> dict[str, Place]:
        """The parts of parameters that this rank keeps."""
        names = {id(parameter): name for name, parameter in self._trained()}
        return {names[id(parameter)]: place for parameter, place in places(self._zero)}


def engine_settings(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's own settings. What is left out of them, batches and schedule for instance, is the loop's business."""
    to_host = {"device": "cpu", "pin_memory": device.type == "cuda"}
    zero: dict[str, Any] = {"stage": config.deepspeed.stage}
    if config.deepspeed.offload != "none":
        zero["offload_optimizer"] = to_host
    if config.deepspeed.offload == "optimizer_and_weights":
        zero["offload_param"] = to_host
    bf16 = config.precision == "bf16"
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # PyTorch's AdamW: nothing has to be compiled
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": None,
        **({"bf16": {"enabled": True, "check_grad_overflow": True}} if bf16 else {}),
    }


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told which device to use: left alone it takes a GPU whenever there is one."""
    os.environ["DS_ACCELERATOR"] = device.type
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # of the device, in DeepSpeed's eyes
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    assert get_accelerator().device_name() == device.type, "something imported DeepSpeed before"
    # It would try out compilers to see what it could build, and build a collective that it does not need.
    vars(deepspeed.ops)["__compatible_ops__"] = {}
    return deepspeed


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what DeepSpeed prints and warns of while it starts, and warnings about its own code for good."""
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
