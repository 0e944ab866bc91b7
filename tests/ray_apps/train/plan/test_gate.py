"""The gate: planned peaks are those measured, within a tenth, over shapes and settings; no factor is fitted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from ray_apps.train.config import TrainConfig
from ray_apps.train.plan.memory import Memory, training_memory
from ray_apps.train.plan.tally import dissect

ROOT = Path(__file__).parents[4]
WIDE = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 8192,
}
GROUPED = {**WIDE, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2}
TIED = {**GROUPED, "vocab_size": 16384, "num_hidden_layers": 4, "tie_word_embeddings": True}
LORA = {"r": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}

CASES: dict[str, tuple[dict[str, Any], int, dict[str, Any]]] = {
    "bf16": (WIDE, 512, {}),
    "selective checkpoints": (GROUPED, 1024, {"activation_checkpointing": "selective"}),
    "fp32, no accumulation": (GROUPED, 1024, {"precision": "fp32", "global_batch_size": 1}),
    "not resharded, tied": (TIED, 512, {"fsdp": {"reshard_after_forward": False}, "global_batch_size": 1}),
    "lora": (WIDE, 1024, {"lora": LORA}),
    "two workers": ({**WIDE, "vocab_size": 2048}, 1024, {"num_workers": 2, "global_batch_size": 4}),
    "four workers, fp32, no checkpoints": (
        GROUPED,
        512,
        {"num_workers": 4, "global_batch_size": 4, "precision": "fp32", "activation_checkpointing": False},
    ),
}


def make_case(shape: dict[str, Any], tokens: int, fields: dict[str, Any]) -> dict[str, Any]:
    places = {"model": "base", "dataset": "dataset", "run_dir": "run", "output": "tuned"}
    return {"shape": shape, "tokens": tokens, "train": {**places, "global_batch_size": 2, **fields}}


def plan(case: dict[str, Any]) -> Memory:
    config = TrainConfig.parse(case["train"])
    return training_memory(dissect(LlamaConfig(**case["shape"]), config, case["tokens"]), config, stored_bytes=4)


def measure(case: dict[str, Any], rendezvous: Path) -> int:
    """Peak bytes, measured in a fresh process."""
    module = "tests.ray_apps.train.plan.measure_peak"
    command = [sys.executable, "-W", "ignore", "-m", module, json.dumps(case), str(rendezvous)]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(json.loads(printed.splitlines()[-1])["peak_bytes"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_planned_peak_is_the_measured_one(name: str, tmp_path: Path) -> None:
    case = make_case(*CASES[name])
    planned, measured = plan(case), measure(case, tmp_path / "rendezvous")
    peak = planned.peak.total_bytes
    print(f"{name}: planned {peak / 1e6:.1f} MB ({planned.peak.name}), measured {measured / 1e6:.1f} MB")
    assert measured > 100e6, "too small: what is constant would count for too much"
    assert peak == pytest.approx(measured, rel=0.1)
