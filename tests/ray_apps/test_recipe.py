from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import ConfigError
from ray_apps.recipe import RECIPES, Recipe, data_section, find_recipe, load_recipe, train_section
from ray_apps.train.config import TrainConfig

KNOWN = ["lora_7b", "offload_single_gpu", "smollm2_cpu", "smollm2_spot", "vicuna_13b", "vicuna_7b"]
TRAIN = {"model": "base", "dataset": "data", "run_dir": "run", "output": "model"}
DATA = {"output": "data", "tokenizer": "base", "sources": ["chats.json"]}


def write(tmp_path: Path, **sections: Any) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(sections))
    return str(path)


def refused(name: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_recipe(name, overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", KNOWN)
def test_a_recipe_that_comes_along_is_found_by_its_name(name: str) -> None:
    assert find_recipe(name) == RECIPES / f"{name}.yaml"
    assert find_recipe(name).is_file()


@pytest.mark.parametrize("path", ["mine.yaml", "mine.yml", "./vicuna_7b", "folder/mine.yaml", "/abs/mine.yaml"])
def test_a_path_is_taken_as_it_is(path: str) -> None:
    assert find_recipe(path) == Path(path)


def test_an_unknown_recipe_lists_the_known() -> None:
    assert refused("vicuna_70b") == [
        f"recipe 'vicuna_70b': no such recipe; valid: a path to a YAML file, or one of {', '.join(KNOWN)}"
    ]


def test_a_recipe_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere.yaml")
    assert refused(path) == [f"{path}: No such file or directory"]


def test_a_recipe_is_read_with_its_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, data=DATA, train=TRAIN)
    recipe = load_recipe(path, ["train.learning_rate=3e-4", "data.context_length=512", "train.lora.r=4"])
    assert data_section(recipe, path).context_length == 512
    train = train_section(recipe, path)
    assert train.learning_rate == 3e-4
    assert train.lora is not None
    assert train.lora.r == 4


def test_an_override_can_switch_a_section_off(tmp_path: Path) -> None:
    path = write(tmp_path, train={**TRAIN, "lora": {"r": 4}})
    assert train_section(load_recipe(path, ["train.lora=null"]), path).lora is None


@pytest.mark.parametrize("sections", [{}, {"data": None, "train": None}])
def test_a_missing_section_is_named_when_it_is_asked_for(sections: dict[str, None]) -> None:
    recipe = Recipe.parse(sections)
    with pytest.raises(ConfigError, match=r"^recipe 'mine': it has no section 'data'$"):
        data_section(recipe, "mine")
    with pytest.raises(ConfigError, match=r"^recipe 'mine': it has no section 'train'$"):
        train_section(recipe, "mine")


def test_the_whole_file_is_checked_whichever_section_is_used(tmp_path: Path) -> None:
    path = write(tmp_path, data={**DATA, "context": 512}, train={**TRAIN, "epochs": "3", "lora": {"rank": 8}}, dta={})
    assert refused(path) == [
        "data.context: unknown field; did you mean 'context_length'? Valid fields: context_length, "
        "decontamination, dedup, eval_fraction, exclude_ids, filters, group_size, identity, moderation, output, "
        "oversize_round, pack, sources, template, tokenizer",
        "train.epochs: '3' is not valid; expected a valid integer",
        "train.lora.rank: unknown field. Valid fields: alpha, dropout, export, r, target_modules",
        "dta: unknown field; did you mean 'data'? Valid fields: data, eval, spot, train",
    ]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.learning_rate='2e-5'", "train.learning_rate: '2e-5' is not valid; expected a valid number"),
        ("train.learning_rate=0", "train.learning_rate: 0 is not valid; expected greater than 0"),
        ("train.schedule=cos", "train.schedule: 'cos' is not valid; expected 'cosine', 'linear' or 'constant'"),
        ("train.use_gpu=maybe", "train.use_gpu: 'maybe' is not valid; expected a valid boolean or 'auto'"),
        ("train.max_steps=0", "train.max_steps: 0 is not valid; expected greater than or equal to 1"),
        ("train.checkpoint=10", "train.checkpoint: 10 is not valid; expected a valid dictionary or instance of"),
        ("train.lora.target_modules=[]", "train.lora.target_modules: [] is not valid; expected at least 1 item"),
        ("train.model=null", "train.model: None is not valid; expected a valid string"),
        ("train=null", "recipe"),
        ("data.template=alpaca", "data.template: 'alpaca' is unknown; valid: chatml, llama-2, vicuna_v0, vicuna_v1.1"),
    ],
)
def test_a_wrong_override_is_one_line(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train_section(load_recipe("vicuna_7b", [override]), "vicuna_7b")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@given(batch=st.integers(1, 200), micro=st.integers(1, 8), workers=st.integers(1, 8))
def test_a_batch_that_cannot_be_shared_out_is_refused(batch: int, micro: int, workers: int) -> None:
    values = {**TRAIN, "global_batch_size": batch, "micro_batch_size": micro, "num_workers": workers}
    if batch % (micro * workers) == 0:
        assert TrainConfig.parse(values).global_batch_size == batch
        return
    with pytest.raises(ConfigError) as caught:
        TrainConfig.parse(values, "train")
    assert str(caught.value) == (
        f"train.global_batch_size: {batch} is not a multiple of micro_batch_size × num_workers = "
        f"{micro} × {workers} = {micro * workers}"
    )
