from collections.abc import Callable
from typing import Any

import pytest

from data_prep.errors import ConfigError
from ray_apps.train.combinations import check_combination
from ray_apps.train.config import TrainConfig

NF4 = {"quantize_base": "nf4", "lora": {}}
EIGHT_BIT = {"optimizer": "adamw_8bit"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"compile": True, "activation_checkpointing": "selective"},
            r"train\.compile: True is not valid with train\.activation_checkpointing 'selective'",
        ),
        (
            {"attention": "flash_attention_2", "precision": "fp32"},
            r"train\.attention: 'flash_attention_2' is not valid with train\.precision 'fp32'",
        ),
        ({"quantize_base": "nf4"}, r"train\.quantize_base: 'nf4' is not valid without train\.lora"),
        (
            {**NF4, "num_workers": 2},
            r"train\.num_workers: 2 is not valid with train\.quantize_base 'nf4': .*; expected 1",
        ),
        ({**EIGHT_BIT, "num_workers": 4}, r"train\.num_workers: 4 is not valid with train\.optimizer 'adamw_8bit'"),
        ({**NF4, "strategy": "deepspeed"}, r"train\.strategy: 'deepspeed' is not valid with .*; expected 'fsdp'"),
        ({**EIGHT_BIT, "strategy": "deepspeed"}, r"train\.strategy: 'deepspeed' is not valid with train\.optimizer"),
        ({**EIGHT_BIT, "fsdp": {"cpu_offload": True}}, r"train\.fsdp\.cpu_offload: True is not valid with"),
    ],
)
def test_what_does_not_work_together_is_refused_by_name(
    make_config: Callable[..., TrainConfig], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_combination(make_config(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {**NF4, **EIGHT_BIT},
        {"strategy": "deepspeed", "lora": {}, "num_workers": 4},
        {"strategy": "deepspeed", "deepspeed": {"stage": 3, "offload": "optimizer_and_weights"}},
    ],
)
def test_what_works_together_is_not(make_config: Callable[..., TrainConfig], fields: dict[str, Any]) -> None:
    check_combination(make_config(**fields))


def test_weights_that_are_not_spread_stay_on_the_device(make_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match=r"'optimizer_and_weights' is not valid with stage 2; expected stage 3"):
        make_config(deepspeed={"stage": 2, "offload": "optimizer_and_weights"})
