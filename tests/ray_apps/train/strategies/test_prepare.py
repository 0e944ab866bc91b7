from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_apps.models import load_causal_lm
from ray_apps.train.config import TrainConfig
from ray_apps.train.strategies.fsdp import FsdpStrategy
from tests.ray_apps.train.ranks import Ranks, losses

Make = Callable[..., TrainConfig]

LORA = {"lora": {"r": 4, "dropout": 0.0}, "learning_rate": 1e-2}


def soak(fields: dict[str, Any]) -> Any:
    return pytest.param(fields, marks=pytest.mark.soak)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"activation_checkpointing": True},
        {"strategy": "deepspeed", "deepspeed": {"stage": 2}},
        {"optimizer": "adamw_8bit"},
        soak({"activation_checkpointing": False}),
        soak(LORA),
        soak({**LORA, "quantize_base": "nf4"}),
        soak({"strategy": "deepspeed", "deepspeed": {"stage": 3}}),
    ],
)
def test_compiled_layers_give_the_same_losses(make: Make, one_rank: Ranks, fields: dict[str, Any]) -> None:
    eager, compiled = make("eager", **fields), make("compiled", **fields, compile=True)
    one_rank.train(eager, compiled)
    assert losses(compiled) == pytest.approx(losses(eager), abs=1e-4)


@pytest.mark.parametrize(("precision", "frozen"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_what_is_not_trained_is_held_in_the_type_it_is_computed_in(
    make: Make, process_group: None, precision: str, frozen: torch.dtype
) -> None:
    strategy = FsdpStrategy(make("run", precision=precision, **LORA), torch.device("cpu"))
    strategy.wrap(load_causal_lm(Path(strategy.config.model), device="cpu", attn_implementation="sdpa"))
    types = {(parameter.requires_grad, parameter.dtype) for parameter in strategy.module.parameters()}
    assert types == {(True, torch.float32), (False, frozen)}
