"""Adapters merged as peft merges them, and refused where they are not whole or not for the base."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.errors import ModelError
from tests import tiny
from tests.ray_apps.engine.native.test_adapters import write_adapter
from tests.ray_apps.weights.test_delta import read, run

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 3}, "alpha_pattern": {"down_proj": 5}},
    "whole layers beside": {"modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a head of its own."""
    return tiny.write_model(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_as_peft_merges_it(model: Path, tmp_path: Path, kind: str, form: str) -> None:
    adapter = tmp_path / "adapter"
    expected = write_adapter(model, adapter, seed=1, merged=True, **KINDS[kind]).state_dict()
    if form == "bin":
        torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
        (adapter / "adapter_model.safetensors").unlink()
    (adapter / "chat_template.jinja").write_text("of the adapter")
    run("merge-lora", str(model), str(adapter), str(tmp_path / "merged"))
    base, merged = read(model), read(tmp_path / "merged")
    assert merged.keys() == base.keys()
    for name, tensor in merged.items():
        assert tensor.dtype == base[name].dtype
        assert torch.allclose(tensor, expected[name], atol=1e-5), name
    assert any(not torch.equal(merged[name], base[name]) for name in base)
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == "of the adapter"
    assert (tmp_path / "merged" / "config.json").read_text() == (model / "config.json").read_text()
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


def without(adapter: Path, key: str) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    del weights[key]
    save_file(weights, adapter / "adapter_model.safetensors")


def with_tensor(adapter: Path, key: str, tensor: torch.Tensor) -> None:
    save_file(load_file(adapter / "adapter_model.safetensors") | {key: tensor}, adapter / "adapter_model.safetensors")


def with_field(adapter: Path, field: str, value: object) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, field: value}))


PREFIX = "base_model.model."
LAYER = f"{PREFIX}model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda place: (place / "adapter_config.json").unlink(), "has no adapter_config.json"),
        (lambda place: (place / "adapter_config.json").write_text("{"), "adapter_config.json: Expecting"),
        (lambda place: (place / "adapter_config.json").write_text("{}"), "adapter_config.json has no 'peft_type'"),
        (lambda place: with_field(place, "peft_type", "IA3"), "it is a IA3 adapter; valid: LORA"),
        (lambda place: with_field(place, "use_dora", True), "DoRA is not merged"),
        (lambda place: (place / "adapter_model.safetensors").unlink(), "it has neither adapter_model.safetensors nor"),
        (lambda place: (place / "adapter_model.safetensors").write_bytes(b"{}"), "it is cut off or no safetensors"),
        (lambda place: without(place, f"{LAYER}.lora_A.weight"), r"layers\.0\.self_attn\.q_proj has no lora_A"),
        (lambda place: with_tensor(place, f"{LAYER}.lora_A.weight", torch.ones(4, 5)), r"q_proj: \[64, 4\] × \[4, 5\]"),
        (lambda place: with_field(place, "r", 8), r"down_proj is of rank 4, where adapter_config\.json says 8"),
        (lambda place: with_field(place, "rank_pattern", {"(": 2}), r"rank_pattern: '\(' is no pattern"),
        (lambda place: with_field(place, "alpha_pattern", {"q_proj": 0}), "alpha_pattern: q_proj: 0 is not valid"),
        (lambda place: with_field(place, "alora_invocation_tokens", [1]), "aLoRA is not merged"),
        (
            lambda place: with_field(place, "init_lora_weights", "pissa_niter_4"),
            r"with a changed base \(pissa_niter_4\)",
        ),
        (lambda place: save_file({}, place / "adapter_model.safetensors"), "it has no tensors"),
        (lambda place: with_tensor(place, f"{LAYER}.lora_magnitude_vector", torch.ones(5)), "of a kind that is not"),
        (
            lambda place: [with_tensor(place, f"{PREFIX}x.lora_{side}.weight", torch.ones(4, 4)) for side in "AB"],
            r"x\.weight: missing in the base",
        ),
        (
            lambda place: with_tensor(place, f"{PREFIX}extra", torch.ones(1)),
            r"extra: \[1\], in the base missing",
        ),
        (
            lambda place: with_tensor(place, f"{PREFIX}model.embed_tokens.weight", torch.ones(474, 64)),
            "it is the head of the base too, which the adapter was not trained for",
        ),
    ],
)
def test_what_does_not_belong_is_named(tiny_model_dir: Path, tmp_path: Path, harm: Any, message: str) -> None:
    write_adapter(tiny_model_dir, tmp_path / "adapter", seed=1)
    harm(tmp_path / "adapter")
    with pytest.raises(ModelError, match=message):
        run("merge-lora", str(tiny_model_dir), str(tmp_path / "adapter"), str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_a_quantised_base_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    write_adapter(tiny_model_dir, tmp_path / "adapter", seed=1)
    run("quantize", str(tiny_model_dir), str(tmp_path / "base"), "--to", "int8")
    with pytest.raises(ModelError, match=r"q_proj\.weight: int8 in the base, which is quantised"):
        run("merge-lora", str(tmp_path / "base"), str(tmp_path / "adapter"), str(tmp_path / "merged"))


def test_the_adapter_s_tokenizer_takes_the_place_of_the_base_s(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    write_adapter(model, adapter, seed=1)
    run("merge-lora", str(model), str(adapter), str(tmp_path / "plain"))
    assert (tmp_path / "plain" / "tokenizer.json").read_text() == (model / "tokenizer.json").read_text()
    (adapter / "tokenizer.model").write_bytes(b"another")
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": "of the adapter"}))
    run("merge-lora", str(model), str(adapter), str(tmp_path / "merged"))
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert not names & {"tokenizer.json", "chat_template.jinja"}
    settings = json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())
    assert settings == {"chat_template": "of the adapter"}


@pytest.mark.parametrize("in_settings", [False, True])
def test_the_base_s_template_stays_if_the_adapter_has_none(model: Path, tmp_path: Path, in_settings: bool) -> None:
    base = tmp_path / "base"
    shutil.copytree(model, base)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    if in_settings:
        (base / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "of the base"}))
    else:
        (base / "chat_template.jinja").write_text("of the base")
    write_adapter(base, tmp_path / "adapter", seed=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, tmp_path / "adapter" / name)
    settings.pop("chat_template", None)
    (tmp_path / "adapter" / "tokenizer_config.json").write_text(json.dumps(settings))
    run("merge-lora", str(base), str(tmp_path / "adapter"), str(tmp_path / "merged"))
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == "of the base"
