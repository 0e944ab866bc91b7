from collections.abc import Callable
from typing import Any

import pytest
import torch

from ray_apps.run_dir import RunDir
from ray_apps.train import state
from ray_apps.train.config import TrainConfig
from ray_apps.train.loop import run_training
from ray_apps.train.state import TrainState
from tests.processes import CPU


def test_step_and_random_state_come_back() -> None:
    saved = TrainState(step=7).to_saved(rank=1)
    drawn = torch.rand(3)
    assert TrainState.from_saved(saved, rank=1).step == 7
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("began_on_a_gpu", [True, False], ids=["GPU to CPU", "CPU to GPU"])
def test_a_run_goes_on_with_the_other_kind_of_device(
    make_config: Callable[..., TrainConfig], process_group: None, monkeypatch: pytest.MonkeyPatch, began_on_a_gpu: bool
) -> None:
    plain = state._random_states

    def as_on_a_gpu() -> dict[str, torch.Tensor]:
        return {**plain(), "rng_cuda": torch.zeros(16, dtype=torch.uint8)}

    class StoppedError(Exception):
        pass

    def stop(measures: dict[str, Any]) -> None:
        raise StoppedError

    config = make_config(max_steps=4)
    kinds = [as_on_a_gpu, plain] if began_on_a_gpu else [plain, as_on_a_gpu]
    monkeypatch.setattr(state, "_random_states", kinds[0])
    with pytest.raises(StoppedError):
        run_training(config, CPU, stop)
    monkeypatch.setattr(state, "_random_states", kinds[1])
    run_training(config, CPU)
    records = RunDir(config.run_dir).read_metrics()
    _, resumed_at = (record["step"] for record in records if record.get("event") == "start")
    assert resumed_at >= 2
    finished = RunDir(config.run_dir).latest_checkpoint()
    assert finished is not None
    assert finished.step == 4
