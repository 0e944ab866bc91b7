"""What a run writes down of what it is made of, and what it says when it goes on with something else."""

from collections.abc import Callable
from typing import Any

import pytest

from data_prep.errors import RunError
from data_prep.manifest import read_manifest
from ray_apps.run_dir import RunDir
from ray_apps.train import launch
from ray_apps.train.config import TrainConfig
from ray_apps.train.loop import run_training
from ray_apps.train.metrics import FAILED
from ray_apps.train.receipt import environment, run_receipt
from tests.processes import CPU


def warnings(config: TrainConfig) -> list[str]:
    return [record["message"] for record in RunDir(config.run_dir).read_metrics() if record.get("event") == "warning"]


def test_every_setting_is_written_down(make_config: Callable[..., TrainConfig]) -> None:
    """In the receipt, which is held to, or beside it."""
    config = make_config(lora={"r": 4})
    held_to, beside = run_receipt(config, read_manifest(config.dataset)), environment(config)["settings"]
    assert TrainConfig.model_fields.keys() <= {*held_to, *beside}
    assert {*held_to["lora"], *beside["lora"]} == {"r", "alpha", "dropout", "target_modules", "export"}


def test_a_run_that_goes_on_with_something_else_says_so(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> dict[str, str]:
        return {"ended": FAILED, "message": "no more"}

    def train(**fields: Any) -> TrainConfig:
        config = make_config(**fields)
        with pytest.raises(RunError, match="no more"):
            launch.train(config)
        return config

    monkeypatch.setattr(launch, "_fit", fail)
    config = train(max_steps=2)
    assert RunDir(config.run_dir).read_receipt()["environment"]["settings"]["attention"] == "auto"  # type: ignore[index]
    train(max_steps=2)
    assert warnings(config) == []
    train(max_steps=2, attention="sdpa", checkpoint={"every_steps": 1})
    monkeypatch.setattr("ray_apps.train.receipt.code_version", lambda: "0.0.0")
    train(max_steps=2, attention="sdpa", checkpoint={"every_steps": 1})
    settings, code = warnings(config)
    assert "settings.attention ('auto' → 'sdpa'), settings.checkpoint.every_steps (2 → 1)" in settings
    assert code.endswith("→ '0.0.0')")


def test_a_run_that_goes_on_with_other_devices_says_so(
    make_config: Callable[..., TrainConfig], process_group: None
) -> None:
    config = make_config(max_steps=2)
    run = RunDir(config.run_dir)
    run.folder.make()
    run.append_metrics({"event": "start", "devices": ["NVIDIA A100"], "time": 0.0})
    run_training(config, CPU)
    (warning,) = warnings(config)
    assert warning.startswith("the run goes on with other devices than before: NVIDIA A100 → ")
