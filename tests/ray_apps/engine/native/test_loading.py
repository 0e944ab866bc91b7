import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from transformers import LlamaConfig, Phi3Config

from data_prep.errors import ConfigError, ModelError
from ray_apps.engine.build import build_engine
from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.native.loading import load_model, within_first_training
from ray_apps.engine.options import EngineOptions
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
        build_engine("native", str(tiny_model_dir), EngineOptions(device="cpu", device_map="auto"))


def with_code(model: Path, directory: Path, mark: Path, **config: Any) -> Path:
    """The model with code of its own, which leaves a mark wherever it is run."""
    shutil.copytree(model, directory)
    (directory / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    kinds = {kind: f"own.{kind}" for kind in ("AutoConfig", "AutoModelForCausalLM", "AutoModel")}
    changes = {
        "config.json": {"auto_map": kinds, **config},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["own.Slow", "own.Fast"]}, **config},
    }
    for name, fields in changes.items():
        path = directory / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return directory


@pytest.mark.parametrize("config", [{}, {"model_type": "own"}, {"model_type": "own", "tokenizer_class": "Own"}])
def test_code_that_comes_with_a_model_is_never_run_whatever_is_answered(
    tiny_model_dir: Path, tmp_path: Path, config: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")  # transformers asks a person
    mark = tmp_path / "mark"
    model = with_code(tiny_model_dir, tmp_path / "model", mark, **config)
    if config:
        with pytest.raises(ModelError):
            load(model)
    else:
        assert type(load(model).model).__module__.startswith("transformers.")
    assert not mark.exists()


def test_a_long_chat_changes_nobody_elses_rotation() -> None:
    factors = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    config = Phi3Config(max_position_embeddings=1024, original_max_position_embeddings=256, rope_parameters=rope)
    assert [within_first_training(config, wanted) for wanted in (None, 64, 256)] == [256, 64, 256]
    with pytest.raises(ConfigError, match=r"args\.max_model_len: 257 .* at most 256 .*; args\.engine: vllm"):
        within_first_training(config, 257)
    assert within_first_training(LlamaConfig(max_position_embeddings=1024), None) is None
