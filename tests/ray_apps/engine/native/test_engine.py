import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from data_prep.errors import ConfigError
from ray_apps.engine.native import decode
from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.native.loading import LoadedModel, load_model
from ray_apps.engine.protocol import EngineError, GenerationRequest, SamplingParams, TokenDelta
from tests import tiny

CHAT = [{"role": "user", "content": "Who are you? 🙂"}]


def load(directory: Path, max_model_len: int | None = None) -> LoadedModel:
    return load_model(str(directory), device="cpu", dtype="float32", max_model_len=max_model_len)


@pytest.fixture(scope="module")
def loaded(tiny_model_dir: Path) -> LoadedModel:
    return load(tiny_model_dir)


@pytest.fixture
def engine(loaded: LoadedModel) -> Iterator[NativeEngine]:
    engine = NativeEngine(loaded)
    yield engine
    engine.shutdown()


def request(engine: NativeEngine, max_tokens: int = 20, **sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        "id", tuple(engine.encode_chat(CHAT)), SamplingParams(max_tokens, **{"temperature": 0, **sampling})
    )


async def answer(engine: NativeEngine, request: GenerationRequest) -> list[TokenDelta]:
    return [delta async for delta in engine.generate(request)]


def ids(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Holds the inference thread at its first step until it is called."""
    import threading

    gate = threading.Event()
    step = decode.next_logits

    def gated(*args: Any) -> torch.Tensor:
        assert gate.wait(timeout=60)
        return step(*args)

    monkeypatch.setattr(decode, "next_logits", gated)
    yield gate.set
    gate.set()


async def test_greedy_answers_are_those_of_transformers(engine: NativeEngine, loaded: LoadedModel) -> None:
    asked = request(engine)
    expected = loaded.model.generate(torch.tensor([asked.prompt_ids]), max_new_tokens=20, do_sample=False)
    assert ids(await answer(engine, asked)) == expected[0, len(asked.prompt_ids) :].tolist()


async def test_equal_seeds_give_equal_answers(engine: NativeEngine) -> None:
    first, second, other = [
        ids(await answer(engine, request(engine, temperature=1.0, seed=seed))) for seed in (1, 1, 2)
    ]
    assert first == second != other


async def test_a_long_prompt_is_read_in_chunks_to_the_same_end(
    engine: NativeEngine, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = torch.tensor([request(engine).prompt_ids])
    whole = decode.next_logits(loaded.model, prompt, DynamicCache(config=loaded.model.config))
    cache = DynamicCache(config=loaded.model.config)
    for part in prompt.split(5, dim=1):
        logits = decode.next_logits(loaded.model, part, cache)
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)
    asked = request(engine, temperature=1.0, seed=3)
    before = ids(await answer(engine, asked))
    monkeypatch.setattr(decode, "PREFILL_TOKENS", 5)
    assert ids(await answer(engine, asked)) == before


async def test_requests_are_answered_in_the_order_they_came(engine: NativeEngine, paused: Callable[[], None]) -> None:
    finished: list[int] = []

    async def ask(number: int) -> None:
        await answer(engine, request(engine, max_tokens=8 - number))
        finished.append(number)

    tasks = [asyncio.create_task(ask(number)) for number in range(4)]
    await asyncio.sleep(0)
    paused()
    await asyncio.gather(*tasks)
    assert finished == [0, 1, 2, 3]


async def test_closing_an_answer_frees_the_engine_for_the_next(engine: NativeEngine, loaded: LoadedModel) -> None:
    steps = 0
    forward = loaded.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        return forward(*args, **kwargs)

    loaded.model.forward = counted  # type: ignore[method-assign]
    try:
        async with aclosing(engine.generate(request(engine, max_tokens=400, temperature=1.5))) as deltas:
            await anext(deltas)
        await answer(engine, request(engine, max_tokens=1))
    finally:
        loaded.model.forward = forward  # type: ignore[method-assign]
    assert steps < 100


async def test_a_request_given_up_while_waiting_is_never_started(
    engine: NativeEngine, paused: Callable[[], None]
) -> None:
    first = asyncio.create_task(answer(engine, request(engine, max_tokens=2)))
    waiting = asyncio.create_task(answer(engine, request(engine, max_tokens=400)))
    await asyncio.sleep(0)
    waiting.cancel()
    paused()
    assert len(ids(await first)) == 2
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_failed_request_leaves_the_engine_running(
    engine: NativeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("secret detail")

    with monkeypatch.context() as patch:
        patch.setattr(decode, "next_logits", fail)
        with pytest.raises(EngineError, match="OutOfMemoryError") as caught:
            await answer(engine, request(engine))
    assert "secret" not in str(caught.value)
    await engine.check_health()
    assert await answer(engine, request(engine, max_tokens=1))


async def test_shutdown_ends_what_runs_and_what_waits(loaded: LoadedModel, paused: Callable[[], None]) -> None:
    engine = NativeEngine(loaded)
    tasks = [asyncio.create_task(answer(engine, request(engine, max_tokens=400))) for _ in range(2)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(engine.shutdown))
    await asyncio.sleep(0.05)
    paused()
    await closing
    assert all(isinstance(result, EngineError) for result in await asyncio.gather(*tasks, return_exceptions=True))
    with pytest.raises(EngineError):
        await engine.check_health()
    with pytest.raises(EngineError):
        await answer(engine, request(engine))
    engine.shutdown()


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **changes}))


@pytest.fixture
async def make_engine(tiny_model_dir: Path, tmp_path: Path) -> AsyncIterator[Callable[..., NativeEngine]]:
    """An engine on a copy of the tiny model with another generation config."""
    engines: list[NativeEngine] = []

    def make(**generation_config: Any) -> NativeEngine:
        directory = tmp_path / "model"
        shutil.copytree(tiny_model_dir, directory)
        change_json(directory / "generation_config.json", **generation_config)
        engines.append(NativeEngine(load(directory)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.shutdown()


async def test_an_answer_ends_at_an_end_token_of_the_generation_config(
    engine: NativeEngine, make_engine: Callable[..., NativeEngine]
) -> None:
    usual = ids(await answer(engine, request(engine, temperature=1.0, seed=5)))
    ended = await answer(changed := make_engine(eos_token_id=[usual[3], 1]), request(changed, temperature=1.0, seed=5))
    assert ids(ended) == usual[: usual.index(usual[3]) + 1]
    assert ended[-1].finish_reason == "stop"


async def test_an_answer_ends_at_a_stop_string_of_the_generation_config(
    engine: NativeEngine, make_engine: Callable[..., NativeEngine]
) -> None:
    usual = "".join(delta.text for delta in await answer(engine, request(engine, temperature=1.0, seed=5)))
    stop = usual[4:6]
    changed = make_engine(stop_strings=[stop])
    ended = await answer(changed, request(changed, temperature=1.0, seed=5))
    assert "".join(delta.text for delta in ended) == usual[: usual.index(stop)]


@pytest.mark.parametrize(("template", "opens"), [("vicuna_v1.1", True), ("chatml", False), ("llama-2", True)])
def test_the_space_that_a_template_writes_before_an_answer_is_known(tmp_path: Path, template: str, opens: bool) -> None:
    assert load(tiny.write_model(tmp_path, template=template)).answer_opens_with_space is opens


def test_the_model_says_how_long_it_reads_and_less_may_be_asked_for(tiny_model_dir: Path) -> None:
    assert load(tiny_model_dir).max_model_len == 512
    assert load(tiny_model_dir, max_model_len=100).max_model_len == 100
    with pytest.raises(ConfigError, match=r"args\.max_model_len: 513 .* at most 512"):
        load(tiny_model_dir, max_model_len=513)
