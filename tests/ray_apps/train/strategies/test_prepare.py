from collections.abc import Callable
from typing import Any

import pytest

from ray_apps.train.config import TrainConfig
from tests.ray_apps.train.ranks import Ranks, losses

LORA = {"lora": {"r": 4, "dropout": 0.0}, "learning_rate": 1e-2}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"activation_checkpointing": False},
        {"activation_checkpointing": True},
        LORA,
        {"optimizer": "adamw_8bit"},
        {**LORA, "quantize_base": "nf4"},
        {"strategy": "deepspeed", "deepspeed": {"stage": 2}},
        {"strategy": "deepspeed", "deepspeed": {"stage": 3}},
    ],
)
def test_compiled_layers_give_the_same_losses(
    make: Callable[..., TrainConfig], one_rank: Ranks, fields: dict[str, Any]
) -> None:
    eager, compiled = make("eager", **fields), make("compiled", **fields, compile=True)
    one_rank.train(eager, compiled)
    assert losses(compiled) == pytest.approx(losses(eager), abs=1e-4)
