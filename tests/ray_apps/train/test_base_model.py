"""A base that would be trained wrongly, not at all, or could not be exported is refused before a run."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from data_prep.encode import IGNORE_INDEX
from data_prep.errors import ConfigError, ModelError
from ray_apps.train.attention import choose_attention
from ray_apps.train.base_model import check_base
from ray_apps.train.config import TrainConfig
from ray_apps.train.data import Batch
from ray_apps.train.objective import WeightedLoss
from ray_apps.train.probes import mixes_chats

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MIXTURE = {"n_routed_experts": 2, "num_experts_per_tok": 1}


def refusal(make_config: Callable[..., TrainConfig], directory: Path, context_length: int = 32) -> str:
    with pytest.raises((ModelError, ConfigError)) as caught:
        check_base(make_config(model=str(directory)), directory, context_length)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_built_otherwise_is_refused(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "base")
    assert "a GPT2LMHeadModel cannot be trained here: it has no decoder layers" in refusal(
        make_config, tmp_path / "base"
    )


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("granite", {"logits_scaling": 8.0}, "it scales or caps its logits"),
        ("cohere", {}, "it scales or caps its logits"),
        ("cohere2", {}, "it scales or caps its logits"),
        ("gemma2", {"head_dim": 16}, "does not support an attention implementation"),
        ("stablelm", {}, "its layers do not tell attention where chats end"),
        ("nemotron", {}, "its layers do not tell attention where chats end"),
        ("lfm2", {"layer_types": ["conv"]}, "its layers have convolutions"),
        ("doge", {}, "its layers need a mask"),
        ("deepseek_v32", MIXTURE, "its layers cannot be run (TypeError: 'NoneType' object is not subscriptable)"),
        ("glm_moe_dsa", MIXTURE, "its layers cannot be run (TypeError: 'NoneType' object is not subscriptable)"),
    ],
)
def test_a_model_whose_loss_would_be_another_is_refused(
    make_config: Callable[..., TrainConfig], tmp_path: Path, kind: str, fields: dict[str, Any], message: str
) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **fields)).save_pretrained(tmp_path / "base")
    assert message in refusal(make_config, tmp_path / "base")


def test_layers_of_which_nothing_was_seen_count_as_mixing() -> None:
    config = AutoConfig.for_model("minimax", **SMALL, layer_types=["linear_attention"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    how = mixes_chats(model)
    assert how is not None
    assert how.startswith("cannot be run (RuntimeError: ")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *((kind, {}) for kind in ("llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma", "gemma3_text", "starcoder2")),
        ("granite", {}),  # its scales are 1 by default
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
        ("lfm2", {"layer_types": ["full_attention"]}),  # looks at the mask
        ("jetmoe", {"kv_channels": 16, "num_local_experts": 2, "num_experts_per_tok": 1}),  # routes before it attends
    ],
)
def test_the_loss_of_a_base_that_is_taken_is_its_own(
    make_config: Callable[..., TrainConfig], tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL, **fields)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    check_base(make_config(model=str(tmp_path / "base")), tmp_path / "base", 32)
    chats = torch.randint(0, 64, (2, 8))
    targets = torch.cat([chats[:, 1:], torch.full((2, 1), IGNORE_INDEX)], dim=1)
    borders = torch.tensor([0, 8, 16], dtype=torch.int32)
    positions = torch.arange(8).repeat(2)
    batch = Batch(chats.reshape(1, -1), targets.reshape(1, -1), torch.ones(1, 16), positions[None], borders, 8)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", dtype=torch.float32, attn_implementation=choose_attention("sdpa", torch.device("cpu"))
    )
    with torch.no_grad():
        expected = [float(plain(chat[None], labels=chat[None]).loss) * 7 for chat in chats]
        assert float(WeightedLoss(ours)(batch)) == pytest.approx(sum(expected), rel=1e-5)


def test_weights_stored_under_other_names_are_refused(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = MixtralConfig(**SMALL, num_local_experts=2, num_experts_per_tok=1)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    assert "its files have another name for " in refusal(make_config, tmp_path / "base")


def test_weights_without_their_prefix_are_refused(
    make_config: Callable[..., TrainConfig], tiny_model_dir: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(tiny_model_dir, tmp_path / "bare")
    weights = load_file(directory / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    save_file(bare, directory / "model.safetensors", metadata={"format": "pt"})
    assert "its files have another name for 20 weights" in refusal(make_config, directory)


@pytest.mark.parametrize(("window", "context_length", "valid"), [(16, 32, False), (32, 32, True), (None, 32, True)])
def test_rows_longer_than_a_sliding_window_are_refused(
    make_config: Callable[..., TrainConfig], tmp_path: Path, window: int | None, context_length: int, valid: bool
) -> None:
    MistralForCausalLM(MistralConfig(**SMALL, sliding_window=window)).save_pretrained(tmp_path / "base")
    if valid:
        check_base(make_config(model=str(tmp_path / "base")), tmp_path / "base", context_length)
    else:
        assert "data.context_length: 32 is more than the 16 tokens of the sliding" in refusal(
            make_config, tmp_path / "base"
        )


def test_other_forms_of_the_weights_and_stored_buffers_are_passed_over(
    make_config: Callable[..., TrainConfig], tiny_model_dir: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(tiny_model_dir, tmp_path / "both")
    other: dict[str, Any] = {"layers.0.attention.wq.weight": torch.ones(2)}
    save_file(other, directory / "consolidated.safetensors", metadata={"format": "pt"})
    check_base(make_config(model=str(directory)), directory, 32)
