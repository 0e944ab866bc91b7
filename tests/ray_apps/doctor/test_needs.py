from pathlib import Path

import pytest

from ray_apps.doctor.needs import MACHINE, Needs, needs_of
from ray_apps.recipe import load_recipe


def needs(*overrides: str, recipe: str = "vicuna_7b") -> Needs:
    return needs_of(load_recipe(recipe, overrides))


def test_a_recipe_says_what_it_needs() -> None:
    found = needs("train.checkpoint.keep_last=4", "train.num_workers=8", "train.output=there")
    assert (found.num_workers, found.precision, found.num_checkpoints, found.lora) == (8, "bf16", 5, None)
    assert set(found.writes) == {"train.run_dir", "train.output", "data.output"}
    assert found.writes["train.output"] == "there"
    assert found.models == {"train.model": "meta-llama/Llama-2-7b-hf"}


def test_a_gpu_is_needed_only_if_the_recipe_says_so() -> None:
    assert needs("train.use_gpu=auto").use_gpu is None
    assert needs("train.use_gpu=false").use_gpu is False


def test_adapters_are_known() -> None:
    assert needs(recipe="lora_7b").lora == (8, frozenset({"q_proj", "v_proj"}))


def test_another_tokenizer_is_reached_too() -> None:
    found = needs("data.tokenizer=org/other").models
    assert found == {"train.model": "meta-llama/Llama-2-7b-hf", "data.tokenizer": "org/other"}


def test_a_recipe_without_training_needs_its_tokenizer_and_a_place() -> None:
    found = needs("train=null")
    assert found == Needs(
        writes={"data.output": "artifacts/vicuna_7b/dataset"}, models={"data.tokenizer": "meta-llama/Llama-2-7b-hf"}
    )


@pytest.mark.parametrize("text", ["{}", "train: null"])
def test_an_empty_recipe_needs_what_any_machine_has(tmp_path: Path, text: str) -> None:
    (tmp_path / "empty.yaml").write_text(text)
    assert needs(recipe=str(tmp_path / "empty.yaml")) == MACHINE
