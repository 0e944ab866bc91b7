import asyncio
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch

from data_prep.errors import ConfigError
from ray_apps.engine.build import build_engine
from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.native.loading import load_model
from ray_apps.engine.protocol import GenerationRequest, SamplingParams

PROMPT = tuple(range(20, 60))
KINDS = {"int8": bitsandbytes.nn.Linear8bitLt, "nf4": bitsandbytes.nn.Linear4bit}

pytestmark = pytest.mark.filterwarnings("ignore")  # what bitsandbytes casts


def load(model: Path, **options: Any) -> Any:
    return load_model(str(model), device="cpu", dtype="bfloat16", max_model_len=None, **options)


@pytest.mark.parametrize("quantize", KINDS)
def test_a_quantised_model_answers_as_transformers_has_it(tiny_model_dir: Path, tmp_path: Path, quantize: str) -> None:
    loaded = load(tiny_model_dir, quantize=quantize)
    layer = loaded.model.model.layers[0].mlp.up_proj
    assert type(layer) is KINDS[quantize]
    expected = loaded.model.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False)[0, len(PROMPT) :]
    loaded.model.save_pretrained(tmp_path / "quantised")
    loaded.language.tokenizer.save_pretrained(tmp_path / "quantised")
    again = load(tmp_path / "quantised")
    assert type(again.model.model.layers[0].mlp.up_proj) is KINDS[quantize]
    with pytest.raises(ConfigError, match=r"args\.quantize: .* the model's weights are quantised already"):
        load(tmp_path / "quantised", quantize=quantize)

    async def answer() -> list[int]:
        asked = GenerationRequest("id", PROMPT, SamplingParams(8, temperature=0))
        return [token async for delta in engine.generate(asked) for token in delta.token_ids]

    engine = NativeEngine(loaded)
    try:
        assert asyncio.run(answer())[:4] == expected[:4].tolist()
    finally:
        engine.shutdown()


def test_layers_are_spread_over_several_gpus_alone(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"args\.device_map: 'auto' is for several GPUs; here are 0"):
        build_engine("native", str(tiny_model_dir), device="cpu", device_map="auto")
