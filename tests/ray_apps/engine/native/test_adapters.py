import asyncio
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from data_prep.errors import ModelError
from ray_apps.engine.native.adapters import Adapters, check_adapter
from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.native.loading import LoadedModel, load_model
from ray_apps.engine.protocol import GenerationRequest, SamplingParams, UnsupportedError
from tests import tiny

PROMPT = tuple(range(20, 60))


def load(directory: Path) -> LoadedModel:
    return load_model(str(directory), device="cpu", dtype="float32", max_model_len=None)


def write_adapter(model: Path, directory: Path, *, seed: int, merged: bool = False, **config: Any) -> Any:
    """An adapter whose matrices are random, as peft writes it; with `merged` the model with it, as peft merges it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    fields: dict[str, Any] = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"], **config}
    peft: Any = get_peft_model(load(model).model, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **fields))
    peft.save_pretrained(directory)
    return peft.merge_and_unload() if merged else None


@pytest.fixture(scope="module")
def adapters(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, PreTrainedModel]]:
    """Directories of adapters, and the model with each, as peft merges them."""
    root = tmp_path_factory.mktemp("adapters")
    configs: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {"r": 8, "target_modules": ["k_proj", "o_proj", "gate_proj"]},
        "c": {"use_rslora": True},
    }
    return {
        name: (root / name, write_adapter(tiny_model_dir, root / name, seed=seed, merged=True, **configs[name]))
        for seed, name in enumerate(configs)
    }


@pytest.fixture
def make(tiny_model_dir: Path, adapters: dict[str, tuple[Path, Any]]) -> Iterator[Callable[..., NativeEngine]]:
    engines: list[NativeEngine] = []

    def engine(**options: Any) -> NativeEngine:
        directories = {name: str(directory) for name, (directory, _) in adapters.items()}
        engines.append(NativeEngine(load(tiny_model_dir), adapters=directories, **options))
        return engines[-1]

    yield engine
    for made in engines:
        made.shutdown()


async def answer(engine: NativeEngine, adapter: str | None, prompt: tuple[int, ...] = PROMPT) -> list[int]:
    asked = GenerationRequest("id", prompt, SamplingParams(24, temperature=0), adapter=adapter)
    return [token async for delta in engine.generate(asked) for token in delta.token_ids]


async def num_cached(engine: NativeEngine, adapter: str | None, prompt: tuple[int, ...]) -> int:
    asked = GenerationRequest("id", prompt, SamplingParams(1, temperature=0), adapter=adapter)
    return [delta.num_cached async for delta in engine.generate(asked)][-1]


def plain(model: PreTrainedModel, prompt: Sequence[int]) -> list[int]:
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
    return expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("prefill_tokens", [7, 256])
async def test_each_is_answered_as_by_the_merged_model_whatever_others_are_in_the_batch(
    make: Callable[..., NativeEngine],
    adapters: dict[str, tuple[Path, PreTrainedModel]],
    tiny_model_dir: Path,
    prefill_tokens: int,
) -> None:
    """All at once, with the same beginnings, twice: what was read through one is not taken for another."""
    models = {None: load(tiny_model_dir).model, **{name: model for name, (_, model) in adapters.items()}}
    asked = [(name, PROMPT[:end]) for end in (40, 30) for name in (None, "a", "b", "c")]
    expected = [plain(models[name], prompt) for name, prompt in asked]
    assert len({tuple(answer) for answer in expected[:4]}) == 4
    engine = make(prefill_tokens=prefill_tokens)
    for _ in range(2):
        assert await asyncio.gather(*(answer(engine, *one) for one in asked)) == expected


async def test_what_was_read_is_reused_for_the_same_adapter_alone(make: Callable[..., NativeEngine]) -> None:
    engine = make()
    assert await num_cached(engine, "a", PROMPT) == 0
    assert await num_cached(engine, "b", PROMPT) == 0
    assert await num_cached(engine, None, PROMPT) == 0
    assert await num_cached(engine, "a", (*PROMPT, 61, 62)) == len(PROMPT)


async def test_there_are_never_more_in_memory_than_allowed(make: Callable[..., NativeEngine]) -> None:
    engine = make(max_loaded_adapters=1)
    alone = {name: await answer(engine, name) for name in "abc"}
    together = await asyncio.gather(*(answer(engine, name) for name in "abcabc"))
    assert together == [alone[name] for name in "abcabc"]


def test_those_used_last_are_held(tiny_model_dir: Path, adapters: dict[str, tuple[Path, Any]]) -> None:
    held = Adapters(load(tiny_model_dir).model, {name: str(path) for name, (path, _) in adapters.items()}, most=2)
    first = held.get("a")
    held.get("b")
    assert held.get("a") is first
    held.get("c")
    assert held.held == ["a", "c"]


async def test_one_that_there_is_not_is_an_error_naming_those_there_are(make: Callable[..., NativeEngine]) -> None:
    with pytest.raises(UnsupportedError, match=r"no adapter 'd'; valid: a, b, c"):
        await answer(make(), "d")


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"use_dora": True}, r"args\.adapters\.x: .*DoRA, which is not served"),
        ({"bias": "lora_only"}, "bias, which is not served"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern, which is not served"),
        ({"peft_type": "IA3"}, "it is a IA3 adapter; valid: LORA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save, which is not served"),
        ({"r": 2}, r"\[4, 128\] instead of \[2, 128\]: it is of another model"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    loaded: LoadedModel, adapters: dict[str, tuple[Path, Any]], tmp_path: Path, config: dict[str, Any], error: str
) -> None:
    shutil.copytree(adapters["a"][0], tmp_path / "x")
    path = tmp_path / "x" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    with pytest.raises(ModelError, match=error):
        check_adapter("x", tmp_path / "x", loaded.model)


@pytest.mark.parametrize("gone", ["layers.1.self_attn.q_proj.lora_B", "layers.0.mlp.down_proj"])
def test_a_missing_tensor_is_named(
    loaded: LoadedModel, adapters: dict[str, tuple[Path, Any]], tmp_path: Path, gone: str
) -> None:
    shutil.copytree(adapters["a"][0], tmp_path / "x")
    weights = tmp_path / "x" / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(weights).items() if gone not in name}, weights)
    with pytest.raises(ModelError, match=rf"args\.adapters\.x: .*{gone}.* is missing"):
        check_adapter("x", tmp_path / "x", loaded.model)


def test_one_of_another_base_is_refused(
    adapters: dict[str, tuple[Path, Any]], tmp_path: Path, tiny_model_dir: Path
) -> None:
    other = load(tiny.write_model(tmp_path, num_key_value_heads=4)).model
    with pytest.raises(ModelError, match=r"v_proj.* it is of another model"):
        check_adapter("x", adapters["a"][0], other)


def test_an_adapter_of_the_output_layer_and_no_directory_at_all_are_refused(
    loaded: LoadedModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    write_adapter(tiny_model_dir, tmp_path / "x", seed=0, target_modules=["q_proj"])
    weights = tmp_path / "x" / "adapter_model.safetensors"
    tensors = {
        name.replace("model.layers.0.self_attn.q_proj", "lm_head"): one for name, one in load_file(weights).items()
    }
    save_file(tensors, weights)
    with pytest.raises(ModelError, match=r"lm_head.* belongs to no linear layer of the model's decoder"):
        check_adapter("x", tmp_path / "x", loaded.model)
    with pytest.raises(ModelError, match=r"args\.adapters\.y: .*nowhere"):
        check_adapter("y", tmp_path / "nowhere", loaded.model)


@pytest.fixture(scope="module")
def loaded(tiny_model_dir: Path) -> LoadedModel:
    return load(tiny_model_dir)
