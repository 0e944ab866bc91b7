"""What is quantised layer by layer is what transformers saves of a model that it quantises whole, and is served."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from data_prep.errors import ModelError
from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.native.loading import BITSANDBYTES, load_model
from ray_apps.engine.protocol import GenerationRequest, SamplingParams
from tests.ray_apps.weights import models
from tests.ray_apps.weights.test_delta import run

pytestmark = pytest.mark.filterwarnings("ignore")  # what bitsandbytes casts

PROMPT = tuple(range(20, 60))


@pytest.mark.parametrize("form", BITSANDBYTES)
def test_as_transformers_saves_it(tiny_model_dir: Path, tmp_path: Path, form: Any) -> None:
    whole: Any = AutoModelForCausalLM.from_pretrained(
        tiny_model_dir, quantization_config=BITSANDBYTES[form], device_map={"": "cpu"}, dtype="auto"
    )
    whole.save_pretrained(tmp_path / "whole")
    run("quantize", str(tiny_model_dir), str(tmp_path / "output"), "--to", form)
    assert ", 0 differ" in run("inspect", str(tmp_path / "whole"), str(tmp_path / "output"))
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("whole", "output")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    sizes = [(place / "model.safetensors").stat().st_size for place in (tmp_path / "output", tiny_model_dir)]
    assert sizes[0] < sizes[1]

    loaded = load_model(str(tmp_path / "output"), device="cpu", dtype="auto", max_model_len=None)
    expected = whole.generate(torch.tensor([PROMPT]), max_new_tokens=4, do_sample=False)[0, len(PROMPT) :]

    async def answer() -> list[int]:
        asked = GenerationRequest("id", PROMPT, SamplingParams(4, temperature=0))
        return [token async for delta in engine.generate(asked) for token in delta.token_ids]

    engine = NativeEngine(loaded)
    try:
        assert asyncio.run(answer()) == expected.tolist()
    finally:
        engine.shutdown()


def test_what_cannot_be_quantised_is_said(tiny_model_dir: Path, tmp_path: Path) -> None:
    run("quantize", str(tiny_model_dir), str(tmp_path / "output"), "--to", "nf4")
    for model, message in {
        str(tmp_path / "output"): "its weights are quantised already",
        models.write(tmp_path / "pickled", models.tensors(1), "bin"): "run `vicuna weights to-safetensors` first",
        models.write(tmp_path / "other", models.tensors(1)): "config.json is not of these weights",
    }.items():
        with pytest.raises(ModelError, match=message):
            run("quantize", model, str(tmp_path / "again"), "--to", "int8")
    assert not (tmp_path / "again").exists()


def test_layers_that_lie_transposed(tmp_path: Path) -> None:
    """GPT-2's."""
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=64, n_layer=1, n_head=4)).save_pretrained(tmp_path / "model")
    whole: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", quantization_config=BITSANDBYTES["nf4"], device_map={"": "cpu"}
    )
    whole.save_pretrained(tmp_path / "whole")
    run("quantize", str(tmp_path / "model"), str(tmp_path / "output"), "--to", "nf4")
    assert ", 0 differ" in run("inspect", str(tmp_path / "whole"), str(tmp_path / "output"))
