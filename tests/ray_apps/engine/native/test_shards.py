import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from data_prep.errors import ConfigError, VicunaError
from ray_apps.engine.build import build_engine
from ray_apps.engine.native import shards
from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.native.loading import load_model
from ray_apps.engine.native.shards import check_divides
from ray_apps.engine.options import EngineOptions
from ray_apps.engine.protocol import EngineError, EngineStoppedError, GenerationRequest, SamplingParams
from tests import tiny

PROMPTS = [tuple(range(20, 20 + length)) for length in (3, 40, 70)]


def build(model: Path, **options: Any) -> NativeEngine:
    divided = EngineOptions(device="cpu", dtype="float32", tensor_parallel_size=2, num_threads=1, **options)
    engine = build_engine("native", str(model), divided)
    assert isinstance(engine, NativeEngine)
    return engine


def pids(engine: NativeEngine) -> list[int]:
    model = engine._model
    assert isinstance(model, shards.ShardedModel)
    assert isinstance(model._shards, shards.ProcessShards)
    return [pid for pid in model._shards.pids if pid]


async def answer(engine: NativeEngine, prompt: tuple[int, ...], max_tokens: int = 24) -> list[int]:
    asked = GenerationRequest("id", prompt, SamplingParams(max_tokens, temperature=0))
    return [token async for delta in engine.generate(asked) for token in delta.token_ids]


def plain(model: PreTrainedModel, prompt: tuple[int, ...]) -> list[int]:
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
    return expected[0, len(prompt) :].tolist()


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


Ask = Callable[[NativeEngine, int], Coroutine[Any, Any, str]]


def in_a_process(model: Path, ask: Ask) -> str:
    """What `ask` tells of an engine with a shard of a process id, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_ask, model, ask).result(timeout=120)


def _ask(model: Path, ask: Ask) -> str:
    shards.COLLECTIVE_S = 3.0
    engine = build(model)
    (pid,) = pids(engine)
    try:
        told = asyncio.run(ask(engine, pid))
    finally:
        engine.shutdown()
    assert not is_alive(pid)
    return told


async def answer_as_one(engine: NativeEngine, pid: int, model: Path) -> str:
    whole = load_model(str(model), device="cpu", dtype="float32", max_model_len=None).model
    expected = [plain(whole, prompt) for prompt in PROMPTS]
    for _ in range(2):  # the second time from the cache
        if await asyncio.gather(*(answer(engine, prompt) for prompt in PROMPTS)) != expected:
            return "other tokens"
    sharded: Any = engine._model
    shares = sharded.cache.layers[0].keys.shape[1], sharded._model.model.layers[0].mlp.up_proj.weight.to_local().shape
    return f"the same from {shares[0]} key head and {tuple(shares[1])}"


@pytest.mark.slow
def test_greedy_answers_are_those_of_one_process_and_each_holds_its_share(tiny_model_dir: Path) -> None:
    told = in_a_process(tiny_model_dir, partial(answer_as_one, model=tiny_model_dir))
    assert told == "the same from 1 key head and (64, 64)"


async def lose_amid_an_answer(engine: NativeEngine, pid: int, stop: signal.Signals) -> str:
    await engine.check_health()
    asked = asyncio.create_task(answer(engine, PROMPTS[0], max_tokens=450))
    await asyncio.sleep(0.3)
    os.kill(pid, stop)
    for asking in (asked, engine.check_health(), answer(engine, PROMPTS[0])):
        try:
            await asking
        except EngineError:
            continue
        return "answered"
    return "stopped"


async def lose_in_silence(engine: NativeEngine, pid: int) -> str:
    os.kill(pid, signal.SIGKILL)
    try:
        for _ in range(200):
            await engine.check_health()
            await asyncio.sleep(0.05)
    except EngineStoppedError as error:
        return str(error)
    return "healthy"


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGSTOP])
def test_a_shard_that_dies_or_hangs_is_the_end_of_the_model(tiny_model_dir: Path, stop: signal.Signals) -> None:
    assert in_a_process(tiny_model_dir, partial(lose_amid_an_answer, stop=stop)) == "stopped"


@pytest.mark.slow
def test_a_shard_that_dies_while_nothing_is_asked_is_noticed(tiny_model_dir: Path) -> None:
    assert in_a_process(tiny_model_dir, lose_in_silence) == "a shard of the model is gone"


def refused(model: Path, free_bytes: int | None = None) -> tuple[str, int]:
    """Why, and how many other processes are left. `free_bytes`: of memory, if that is not what there is."""
    with pytest.MonkeyPatch.context() as patch:
        if free_bytes is not None:
            patch.setattr("ray_apps.engine.native.forward.free_memory", lambda device: free_bytes)
        with pytest.raises(VicunaError) as caught:
            build(model)
    return str(caught.value), len(multiprocessing.active_children())


def in_a_process_of_its_own(function: Callable[..., tuple[str, int]], *arguments: Any) -> tuple[str, int]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result(timeout=120)


@pytest.mark.slow
def test_a_model_that_is_not_served_is_refused_and_leaves_no_shard(tmp_path: Path) -> None:
    config = CONFIG_MAPPING["granite_swa"](
        vocab_size=600, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
    )
    tiny.byte_level().save_pretrained(tmp_path)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    told = in_a_process_of_its_own(refused, tmp_path)
    assert told[0].startswith("the native engine cannot serve a granite_swa model: its attention has s_aux; valid: ")
    assert told[1] == 0


@pytest.mark.slow
def test_a_model_without_room_leaves_no_shard(tiny_model_dir: Path) -> None:
    told = in_a_process_of_its_own(refused, tiny_model_dir, 1000)
    assert "args.max_model_len" in told[0]
    assert told[1] == 0


def test_key_heads_that_do_not_divide_are_refused_by_name(tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path, num_key_value_heads=1)
    with pytest.raises(ConfigError, match=r"args\.tensor_parallel_size: 2 is not valid; .* expected one of 1$"):
        build(model)
    with pytest.raises(ConfigError, match=r"expected one of 1, 2, 3, 6$"):
        check_divides(LlamaConfig(hidden_size=48, num_attention_heads=12, num_key_value_heads=6), 4)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"adapters": {"a": "x"}}, "adapters"),
        ({"quantize": "int8"}, "tensor_parallel_size"),
        ({"device_map": "auto"}, "device_map"),
    ],
)
def test_what_shards_cannot_do_is_refused_by_name(tiny_model_dir: Path, options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"args\.{field}: "):
        build(tiny_model_dir, **options)
