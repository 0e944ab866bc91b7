import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.errors import ModelError
from ray_apps.models import check_causal_lm, choose_device, load_causal_lm


def set_config(**fields: Any) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return damage


def write_config(text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / "config.json").write_text(text) and None


def write_weights(content: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / "model.safetensors").write_bytes(content) and None


def cut_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def lose_a_shard(directory: Path) -> None:
    remove_weights(directory)
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            set_config(num_hidden_layers=3),
            "config.json is not of these weights: 9 tensors are missing, model.layers.2.input_layernorm.weight for one",
        ),
        (
            set_config(intermediate_size=96),
            "config.json is not of these weights: 6 tensors have another shape, "
            "model.layers.0.mlp.down_proj.weight for one: [64, 128] instead of [64, 96]",
        ),
        (
            set_config(num_hidden_layers=1),
            "config.json is not of these weights: it has no place for 9 tensors, "
            "model.layers.1.input_layernorm.weight for one",
        ),
        (set_config(num_attention_heads=3), "The hidden size (64) is not a multiple of the number of attention heads"),
        (set_config(model_type="nonsense"), "model type `nonsense`"),
        (set_config(model_type="vit"), "Unrecognized configuration class"),
        (write_config("{}"), "Should have a `model_type` key"),
        (write_config("{"), "is not a valid JSON file"),
        (cut_weights, "Error while deserializing header: incomplete metadata"),
        (write_weights(b"not safetensors, but some text"), "Error while deserializing header"),
        (write_weights(b""), "Error while deserializing header"),
        (remove_weights, "no file named model.safetensors"),
        (lose_a_shard, "model-00001-of-00002.safetensors"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_clear_line(
    tiny_model_dir: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model_dir, directory)
    damage(directory)
    with pytest.raises(ModelError) as caught:
        load_causal_lm(directory)
    with pytest.raises(ModelError) as checked:
        check_causal_lm(directory)
    assert str(checked.value) == str(caught.value)
    assert str(caught.value).startswith(f"model {str(directory)!r}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_weights_have_the_type_that_was_asked_for(tiny_model_dir: Path, dtype: str, expected: torch.dtype) -> None:
    model = load_causal_lm(tiny_model_dir, dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_a_checked_model_has_no_weights(tiny_model_dir: Path) -> None:
    model = check_causal_lm(tiny_model_dir)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_loaded_model_is_where_it_was_asked_for_and_computes(tiny_model_dir: Path) -> None:
    model = load_causal_lm(tiny_model_dir, device="cpu", attn_implementation="sdpa")
    assert model.device == choose_device("cpu") == torch.device("cpu")
    assert model.config._attn_implementation == "sdpa"
    logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, model.config.vocab_size)
    assert torch.isfinite(logits).all()
