from collections.abc import Callable
from typing import Any

import pytest

from ray_apps.run_dir import RunDir
from ray_apps.train.config import TrainConfig
from ray_apps.train.errors import SameErrorAgain
from ray_apps.train.loop import run_training
from ray_apps.train.metrics import LAUNCHED
from ray_apps.train.strategies.fsdp import FsdpStrategy
from tests.processes import CPU


def test_an_error_that_came_twice_ends_the_run(
    make_config: Callable[..., TrainConfig], process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(max_steps=6)
    update, calls = FsdpStrategy.step, 0

    def fail(strategy: FsdpStrategy, rate: float) -> float:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise ValueError("there is no such thing\nas a fourth step")
        return update(strategy, rate)

    monkeypatch.setattr(FsdpStrategy, "step", fail)
    for _ in range(2):
        with pytest.raises(ValueError, match="no such thing"):
            run_training(config, CPU)
        calls = 2  # it goes on from step 2
    with pytest.raises(SameErrorAgain, match=r"rank 0 after step 3, twice: ValueError: there is no such thing$"):
        run_training(config, CPU)
    assert RunDir(config.run_dir).read_metrics()[-1]["event"] == "failed"

    monkeypatch.undo()
    RunDir(config.run_dir).append_metrics({"event": LAUNCHED, "time": 0.0})  # a person tries again
    assert run_training(config, CPU) == "finish"


def test_a_lost_connection_may_come_as_often_as_it_likes(
    make_config: Callable[..., TrainConfig], process_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*arguments: Any) -> float:
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(FsdpStrategy, "step", lose)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="reset by peer"):
            run_training(make_config(max_steps=6), CPU)
