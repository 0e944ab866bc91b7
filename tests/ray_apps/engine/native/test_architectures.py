"""Which models of transformers the engine serves: it answers as they do by themselves, or refuses them by name."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from data_prep.errors import ModelError
from ray_apps.engine.language import read_language
from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.native.loading import LoadedModel, load_model
from ray_apps.engine.protocol import GenerationRequest, SamplingParams
from tests import tiny

LENGTH = 64
PROMPTS = [tuple((seed * index) % 300 + 20 for index in range(length)) for seed, length in ((7, 23), (11, 9), (5, 1))]
ALIKE = (*PROMPTS[0][:18], 400)
"""Begins as the first does: that much is copied into the slot that nobody had."""
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 6}

EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
GEMMA3N = {
    "head_dim": 16,
    "laurel_rank": 8,
    "activation_sparsity_pattern": [0.0] * 4,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 600,
}


def small(kind: str, **fields: Any) -> LoadedModel:
    """A random model of `kind` with four layers, without parameters that say nothing, such as norms of ones."""
    tokenizer = tiny.byte_level()
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{"vocab_size": len(tokenizer), **SIZES, **fields})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return LoadedModel(model, read_language(tokenizer, model.config, model.generation_config), LENGTH)


def plain(model: PreTrainedModel, prompt: tuple[int, ...]) -> list[int]:
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
    return expected[0, len(prompt) :].tolist()


async def answer(engine: NativeEngine, prompt: tuple[int, ...]) -> list[int]:
    asked = GenerationRequest("id", prompt, SamplingParams(20, temperature=0))
    return [token async for delta in engine.generate(asked) for token in delta.token_ids]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen2", {**LAYERS, "use_sliding_window": True}),
        ("qwen3", {"head_dim": 16}),
        ("qwen3_moe", {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
        ("mistral", {"sliding_window": 6}),
        ("mixtral", {"num_local_experts": 4}),
        ("qwen2_moe", EXPERTS),
        ("gemma2", {**LAYERS, "head_dim": 16, "attn_logit_softcapping": None}),
        ("gemma3_text", {**LAYERS, "head_dim": 16}),
        ("gemma3n_text", {**LAYERS, "num_kv_shared_layers": 2, **GEMMA3N}),
        ("phi3", {}),
        ("olmo2", {}),
        ("granite", {}),
        ("gpt_neox", {}),
        ("gpt2", {}),
    ],
)
async def test_answers_are_those_of_the_model_by_itself(kind: str, fields: dict[str, Any]) -> None:
    loaded = small(kind, **fields)
    *expected, of_alike = [plain(loaded.model, prompt) for prompt in (*PROMPTS, ALIKE)]
    engine = NativeEngine(loaded, max_num_seqs=len(PROMPTS) + 1, prefill_tokens=7)
    try:
        for _ in range(2):  # the second time from the cache
            assert await asyncio.gather(*(answer(engine, prompt) for prompt in PROMPTS)) == expected
        assert await answer(engine, ALIKE) == of_alike
    finally:
        engine.shutdown()


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        ("gpt_oss", {**LAYERS, "head_dim": 16, "num_local_experts": 4}, "its attention has s_aux"),
        ("granite_swa", {}, "its attention has s_aux"),
        ("doge", {}, "its attention has a mask of its own"),
        ("falcon", {}, "its attention is its own"),
        ("gptj", {"rotary_dim": 8}, "its attention is its own"),
        ("gpt_neo", {"attention_types": [[["global", "local"], 2]], "num_layers": 4}, "its attention is its own"),
        ("bloom", {}, "it takes no position_ids"),
        ("bart", {}, "it takes no position_ids"),
        ("bert", {}, "its tokens attend to later ones"),
        ("stablelm", {}, "a pass fails: TypeError"),
        ("qwen2_moe", {**LAYERS, **EXPERTS, "use_sliding_window": True}, "it tells its window to its mask alone"),
    ],
)
def test_a_model_that_would_answer_otherwise_is_refused_by_name(kind: str, fields: dict[str, Any], reason: str) -> None:
    loaded = small(kind, **fields)
    with pytest.raises(ModelError, match=rf"cannot serve a {kind} model: {reason}.*; valid: .*vllm$"):
        NativeEngine(loaded)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("gemma2", "it has attn_logit_softcapping"),
        ("llama4_text", "it has chunked_attention layers"),
        ("qwen3_next", "it has linear_attention layers"),
        ("xlm-roberta", "it counts positions in its own way"),
    ],
)
def test_a_model_with_other_layers_is_refused_before_its_weights_are_read(
    tmp_path: Path, kind: str, reason: str
) -> None:
    tiny.byte_level().save_pretrained(tmp_path)
    CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match=rf"cannot serve a {kind} model: {reason}; valid: .*vllm$"):
        load_model(str(tmp_path), device="cpu", dtype="auto", max_model_len=None)
