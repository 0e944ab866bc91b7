"""The share of the devices' operations that the model used, as it is counted and as it is told."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from data_prep.manifest import read_manifest
from ray_apps.run_dir import RunDir
from ray_apps.stages import train_stage
from ray_apps.train.config import TrainConfig
from ray_apps.train.plan.duration import flops_per_token
from ray_apps.train.plan.gpus import GPUS
from ray_apps.train.plan.tally import dissect
from ray_apps.train.utilisation import model_flops_per_token, peak_flops


@pytest.mark.parametrize("lora", [None, {}, {"r": 64, "target_modules": ["q_proj", "up_proj"]}])
def test_operations_are_those_of_the_plan_without_recomputation(
    make_config: Callable[..., TrainConfig], tiny_model_dir: Path, lora: dict[str, Any] | None
) -> None:
    config = make_config(lora=lora, activation_checkpointing=False)
    anatomy = dissect(AutoConfig.from_pretrained(tiny_model_dir), config, 32)
    planned = flops_per_token(anatomy, config, 32.0) - 2 * anatomy.output_parameters  # the loss runs forwards twice
    assert model_flops_per_token(tiny_model_dir, 32.0, config.lora) == pytest.approx(planned, rel=1e-3)


@pytest.mark.parametrize(
    ("device", "gpu"),
    [
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", None),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100 80GB PCIe", "a100-80g"),
        ("NVIDIA H100 80GB HBM3", "h100-80g"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA A10", None),
        ("Tesla T4", "t4"),
        ("NVIDIA T400", None),
        ("Tesla V100-SXM2-16GB", "v100-16g"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("CPU", None),
    ],
)
def test_the_peak_is_that_of_the_very_gpu(device: str, gpu: str | None) -> None:
    expected = (7e12, "a measured matrix product") if gpu is None else (GPUS[gpu].peak_tflops * 1e12, "its datasheet")
    assert peak_flops(device, 7e12) == expected


@pytest.mark.parametrize("lora", [None, {}])
def test_the_share_is_told(
    make_config: Callable[..., TrainConfig],
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lora: dict[str, Any] | None,
) -> None:
    tokens = 1e8
    device = {"device": "NVIDIA L4", "matmul_flops": 1e12, "num_workers": 1, "peak_bytes": 10**9}
    records = [
        {"event": "launch", "time": 0.0},
        {"event": "start", "step": 0, "time": 0.0},
        {"step": 1, "loss": 1.0, "seconds": 2.0, "tokens": tokens, "time": 2.0},
        {"event": "finish", "step": 1, "time": 2.0, **device},
    ]

    def train(config: TrainConfig, **options: Any) -> None:
        for record in records:
            RunDir(config.run_dir).append_metrics(record)

    monkeypatch.setattr("ray_apps.train.launch.train", train)
    monkeypatch.setattr("ray_apps.stages.local_cluster", nullcontext)
    config = make_config(lora=lora)
    train_stage(config)
    told = re.search(r"utilisation ([\d.]+)% of 121.00 TFLOP/s \(its datasheet\)", capsys.readouterr().out)
    assert told is not None
    counts = read_manifest(config.dataset).train
    needed = model_flops_per_token(tiny_model_dir, counts.tokens / counts.conversations, config.lora)
    assert float(told[1]) / 100 == pytest.approx(needed * tokens / 2.0 / 121e12, abs=1e-3)
