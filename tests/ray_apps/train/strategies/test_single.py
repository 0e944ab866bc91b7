"""bitsandbytes in one process: 4-bit bases under adapters, and AdamW with 8-bit state."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemReader

from ray_apps.run_dir import RunDir
from ray_apps.train.config import TrainConfig
from ray_apps.train.export import export
from ray_apps.train.loop import run_training
from tests.ray_apps.train.ranks import StoppedError, losses

CPU = torch.device("cpu")
KINDS = {
    "adamw_8bit": {"optimizer": "adamw_8bit"},
    "nf4": {"quantize_base": "nf4", "lora": {"r": 4}, "learning_rate": 1e-2},
    "nf4 and adamw_8bit": {
        "quantize_base": "nf4",
        "lora": {"r": 64, "target_modules": ["q_proj", "down_proj"]},
        "optimizer": "adamw_8bit",
    },
}

Make = Callable[..., TrainConfig]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("process_group"),
    pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning"),
]


def train(config: TrainConfig) -> list[float]:
    run_training(config, CPU, after_save=lambda measures: None)
    return losses(config)


def trained(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(export(config) / "model.safetensors")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_bit_identical(make: Make, kind: str, precision: str) -> None:
    def stop(measures: dict[str, float]) -> None:
        if measures["step"] == 4:
            raise StoppedError

    fields: dict[str, Any] = {**KINDS[kind], "precision": precision}
    whole, torn = make("whole", **fields), make("torn", **fields)
    train(whole)
    with pytest.raises(StoppedError):
        run_training(torn, CPU, stop)
    assert train(torn) == losses(whole)
    assert losses(whole)[-1] < losses(whole)[0]
    theirs = trained(whole)
    assert all(torch.equal(weight, theirs[name]) for name, weight in trained(torn).items())


def test_8_bits_follow_32(make: Make) -> None:
    """And are saved as such."""
    eight, whole = make("eight", optimizer="adamw_8bit", max_steps=20), make("whole", max_steps=20)
    assert train(eight) == pytest.approx(train(whole), abs=0.1)
    latest = RunDir(eight.run_dir).latest_checkpoint()
    assert latest is not None
    saved = FileSystemReader(latest.folder.path).read_metadata().state_dict_metadata
    state: Any = saved["optimizer.state.model.layers.0.mlp.up_proj.weight.state1"]
    assert state.properties.dtype == torch.uint8


def test_a_base_of_4_bits_learns_like_the_whole_one_and_is_merged_into_it(make: Make, tiny_model_dir: Path) -> None:
    lora = {"lora": {"r": 4, "dropout": 0.0}, "learning_rate": 1e-2, "max_steps": 10}
    four, whole = make("four", quantize_base="nf4", **lora), make("whole", **lora)
    assert train(four) == pytest.approx(train(whole), abs=0.1)
    base, weights = load_file(tiny_model_dir / "model.safetensors"), trained(four)
    assert {name for name in base if not torch.equal(base[name], weights[name])} == {
        name for name in base if "q_proj" in name or "v_proj" in name
    }
