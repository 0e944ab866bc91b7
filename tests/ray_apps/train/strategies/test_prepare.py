from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ray_apps.models import load_causal_lm
from ray_apps.train.attention import choose_attention
from ray_apps.train.config import TrainConfig
from ray_apps.train.data import RowStore, load_batch
from ray_apps.train.strategies.fsdp import FsdpStrategy
from tests.ray_apps.train.ranks import Ranks, losses

Make = Callable[..., TrainConfig]

LORA = {"lora": {"r": 4, "dropout": 0.0}, "learning_rate": 1e-2}


class Calls(TorchDispatchMode, Counter):  # type: ignore[type-arg]
    """How often each operator runs."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self[func.overloadpacket] += 1
        return func(*args, **(kwargs or {}))


def soak(fields: dict[str, Any]) -> Any:
    return pytest.param(fields, marks=pytest.mark.soak)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"activation_checkpointing": True},
        {"strategy": "deepspeed", "deepspeed": {"stage": 2}},
        soak({"optimizer": "adamw_8bit"}),
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"precision": "bf16"},
        LORA,
        {"strategy": "deepspeed", "deepspeed": {"stage": 3}},
        {**LORA, "quantize_base": "nf4"},
    ],
)
def test_what_is_run_again_changes_nothing(make: Make, one_rank: Ranks, fields: dict[str, Any]) -> None:
    kinds = [
        make(f"checkpoints-{kind}", **fields, activation_checkpointing=kind) for kind in (False, True, "selective")
    ]
    one_rank.train(*kinds)
    none, full, selective = map(losses, kinds)
    assert full == none == selective


def test_selective_checkpoints_run_no_matrix_product_again(make: Make, process_group: None) -> None:
    def products(kind: bool | str) -> tuple[int, int]:
        config = make("run", activation_checkpointing=kind, precision="bf16")
        strategy = FsdpStrategy(config, torch.device("cpu"))
        attention = choose_attention("sdpa", torch.device("cpu"))
        strategy.wrap(load_causal_lm(Path(config.model), device="cpu", attn_implementation=attention))
        batch = load_batch(RowStore(Path(config.dataset) / "train"), [0])
        with Calls() as calls:
            strategy.backward(batch, 1.0, last=True)
        return calls[torch.ops.aten.mm], calls[torch.ops.vicuna_ray.causal_attention]

    assert products("selective") == products(False) < products(True)


@pytest.mark.parametrize(("precision", "frozen"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_what_is_not_trained_is_held_in_the_type_it_is_computed_in(
    make: Make, process_group: None, precision: str, frozen: torch.dtype
) -> None:
    strategy = FsdpStrategy(make("run", precision=precision, **LORA), torch.device("cpu"))
    strategy.wrap(load_causal_lm(Path(strategy.config.model), device="cpu", attn_implementation="sdpa"))
    types = {(parameter.requires_grad, parameter.dtype) for parameter in strategy.module.parameters()}
    assert types == {(True, torch.float32), (False, frozen)}
