from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch

from data_prep.errors import ModelError
from ray_apps.run_dir import RunDir
from ray_apps.train.config import TrainConfig
from ray_apps.train.errors import SameErrorAgain
from ray_apps.train.loop import run_training
from ray_apps.train.metrics import LAUNCHED
from ray_apps.train.strategies.fsdp import FsdpStrategy
from tests.processes import CPU

MEMORY = "CUDA out of memory. Tried to allocate {0}.00 GiB. GPU 0 has {1}.25 MiB free.\nProcess {0} has 3 GiB in use."
HOST = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: {1} bytes."


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (ValueError, "there is no such thing\nas a fourth step"),
        (torch.OutOfMemoryError, MEMORY),
        (RuntimeError, HOST),
    ],
)
def test_an_error_that_came_twice_ends_the_run(
    make_config: Callable[..., TrainConfig],
    process_group: None,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Exception],
    text: str,
) -> None:
    config = make_config(max_steps=6)
    update, calls, numbers = FsdpStrategy.step, 0, count(17)

    def fail(strategy: FsdpStrategy, rate: float) -> float:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise kind(text.format(calls, next(numbers)))
        return update(strategy, rate)

    monkeypatch.setattr(FsdpStrategy, "step", fail)
    for _ in range(2):
        with pytest.raises(kind, match=text[:14].replace("[", r"\[")):
            run_training(config, CPU)
        calls = 2  # it goes on from step 2
    with pytest.raises(SameErrorAgain, match=rf"rank 0 after step 3, twice: {kind.__name__}: .*"):
        run_training(config, CPU)
    assert RunDir(config.run_dir).read_metrics()[-1]["event"] == "failed"

    monkeypatch.undo()
    RunDir(config.run_dir).append_metrics({"event": LAUNCHED, "time": 0.0})  # a person tries again
    assert run_training(config, CPU) == "finish"


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("ray_apps.train.strategies.fsdp.FsdpStrategy.step", RuntimeError("Connection reset by peer")),
        (
            "ray_apps.train.strategies.build.local_model_dir",
            ModelError("s3://models/base: the endpoint does not answer"),
        ),
    ],
)
def test_a_lost_connection_may_come_as_often_as_it_likes(
    make_config: Callable[..., TrainConfig],
    process_group: None,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Exception,
) -> None:
    def lose(*arguments: Any) -> float:
        raise error

    monkeypatch.setattr(place, lose)
    for _ in range(3):
        with pytest.raises(type(error), match=str(error)):
            run_training(make_config(max_steps=6), CPU)
