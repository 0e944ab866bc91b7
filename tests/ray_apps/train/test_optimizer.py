from collections.abc import Callable

import pytest
import torch

from ray_apps.train.config import TrainConfig
from ray_apps.train.optimizer import build_optimizer, learning_rate


def test_cosine_with_warmup(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(learning_rate=2.0, warmup_ratio=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] < 0.01
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_linear_and_constant(make_config: Callable[..., TrainConfig]) -> None:
    linear = make_config(learning_rate=1.0, warmup_ratio=0.0, schedule="linear")
    assert [learning_rate(step, 4, linear) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    constant = make_config(learning_rate=1.0, warmup_ratio=0.0, schedule="constant")
    assert {learning_rate(step, 4, constant) for step in range(4)} == {1.0}


def test_vectors_are_not_decayed(make_config: Callable[..., TrainConfig]) -> None:
    optimizer = build_optimizer(torch.nn.Linear(3, 2), make_config(weight_decay=0.1))
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [(0.1, 1), (0.0, 1)]
