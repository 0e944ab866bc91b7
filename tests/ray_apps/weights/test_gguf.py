"""The real base of the demo, from the package that ships it."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ray_apps.demo import BASE_FILE, BASE_PACKAGE
from ray_apps.model_dir import ORIGIN
from ray_apps.weights.gguf import convert_gguf


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_demo_s_base_becomes_an_ordinary_model_directory(tmp_path: Path) -> None:
    package = importlib.util.find_spec(BASE_PACKAGE)
    assert package is not None
    assert package.origin is not None
    convert_gguf(Path(package.origin).parent / BASE_FILE, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in weights  # it is the embedding
    assert json.loads((tmp_path / "base" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert json.loads((tmp_path / "base" / ORIGIN).read_text()) == {"gguf": BASE_FILE}

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert tokenizer.eos_token == "<|im_end|>"
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
