import asyncio
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from data_prep.errors import ConfigError
from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.native.forward import SlotModel, fitting_slots
from ray_apps.engine.native.loading import LoadedModel, load_model
from ray_apps.engine.native.sampling import Choice, Sampler
from ray_apps.engine.protocol import (
    EngineError,
    EngineStats,
    EngineStoppedError,
    GenerationRequest,
    SamplingError,
    SamplingParams,
    TokenDelta,
    UnsupportedError,
)

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
    """Holds the inference thread at its first pass until it is called."""
    gate = threading.Event()
    forward = SlotModel.forward

    def gated(*args: Any) -> torch.Tensor:
        assert gate.wait(timeout=60)
        return forward(*args)

    monkeypatch.setattr(SlotModel, "forward", gated)
    yield gate.set
    gate.set()


@pytest.fixture(scope="module")
def transformers_model(tiny_model_dir: Path) -> PreTrainedModel:
    """The same model, left as it is."""
    return load(tiny_model_dir).model


def plain(model: PreTrainedModel, prompt_ids: tuple[int, ...], max_tokens: int) -> list[int]:
    """What transformers answers, greedily."""
    expected = model.generate(torch.tensor([prompt_ids]), max_new_tokens=max_tokens, do_sample=False)
    return expected[0, len(prompt_ids) :].tolist()


async def test_greedy_answers_are_those_of_transformers(
    engine: NativeEngine, transformers_model: PreTrainedModel
) -> None:
    asked = request(engine)
    assert ids(await answer(engine, asked)) == plain(transformers_model, asked.prompt_ids, 20)


@dataclass(frozen=True)
class Asked:
    """A request: its prompt begins like others', it comes after a while, and may be given up after some tokens."""

    shared: int
    own: int
    max_tokens: int
    comes_after: int
    leaves_after: int | None

    @property
    def prompt(self) -> tuple[int, ...]:
        beginning = [(7 * self.shared + index) % 500 + 20 for index in range(20 * self.shared)]
        return (*beginning, *[self.own + 5] * self.own)


asked_for = st.builds(
    Asked,
    *(st.integers(0, 2), st.integers(1, 60), st.integers(1, 25), st.integers(0, 6)),
    st.sampled_from([None, None, 0, 2, 5]),
)


@settings(max_examples=8, deadline=None)
@given(
    asked=st.lists(asked_for, min_size=2, max_size=8),
    max_num_seqs=st.integers(1, 4),
    prefill_tokens=st.sampled_from([3, 16, 256]),
)
def test_who_joins_or_leaves_never_changes_another_s_tokens(
    loaded: LoadedModel,
    transformers_model: PreTrainedModel,
    asked: list[Asked],
    max_num_seqs: int,
    prefill_tokens: int,
) -> None:
    """All of them twice, so that the second time much has been read already."""
    expected = {one: plain(transformers_model, one.prompt, one.max_tokens) for one in asked}
    engine = NativeEngine(loaded, max_num_seqs=max_num_seqs, prefill_tokens=prefill_tokens)

    async def ask(one: Asked) -> None:
        await asyncio.sleep(one.comes_after / 500)
        found: list[int] = []
        async with aclosing(engine.generate(greedy(one.prompt, one.max_tokens))) as deltas:
            async for delta in deltas:
                found.extend(delta.token_ids)
                if one.leaves_after is not None and len(found) > one.leaves_after:
                    break
        assert found == expected[one][: len(found)]
        assert one.leaves_after is not None or len(found) == len(expected[one])

    async def ask_all() -> None:
        for _ in range(2):
            await asyncio.gather(*map(ask, asked))

    try:
        asyncio.run(ask_all())
    finally:
        engine.shutdown()


def greedy(prompt: tuple[int, ...], max_tokens: int) -> GenerationRequest:
    return GenerationRequest("id", prompt, SamplingParams(max_tokens, temperature=0))


async def test_equal_seeds_give_equal_answers(engine: NativeEngine) -> None:
    first, second, other = [
        ids(await answer(engine, request(engine, temperature=1.0, seed=seed))) for seed in (1, 1, 2)
    ]
    assert first == second != other


async def test_a_long_prompt_is_read_in_chunks_to_the_same_end(engine: NativeEngine, loaded: LoadedModel) -> None:
    chunked = NativeEngine(loaded, prefill_tokens=5)
    asked = request(engine, temperature=1.0, seed=3)
    assert ids(await answer(chunked, asked)) == ids(await answer(engine, asked))
    chunked.shutdown()


async def test_requests_are_answered_side_by_side(engine: NativeEngine, paused: Callable[[], None]) -> None:
    finished: list[int] = []
    no_end = ((1, -100.0),)

    async def ask(number: int) -> None:
        await answer(engine, request(engine, max_tokens=20 - 5 * number, logit_bias=no_end))
        finished.append(number)

    tasks = [asyncio.create_task(ask(number)) for number in range(4)]
    await asyncio.sleep(0)
    paused()
    await asyncio.gather(*tasks)
    assert finished == [3, 2, 1, 0]


async def test_a_request_with_many_answers_does_not_stand_before_another(
    loaded: LoadedModel, paused: Callable[[], None]
) -> None:
    engine = NativeEngine(loaded, max_num_seqs=1)
    ended: list[str] = []

    async def ask(group: str) -> None:
        await answer(engine, replace(request(engine, 2), group=group))
        ended.append(group)

    try:
        tasks = [asyncio.create_task(ask(group)) for group in ("many",) * 5 + ("one",)]
        await asyncio.sleep(0)
        paused()
        await asyncio.gather(*tasks)
    finally:
        engine.shutdown()
    assert ended.index("one") <= 2


async def test_what_was_read_for_one_turn_is_not_read_again_for_the_next(engine: NativeEngine) -> None:
    asked = request(engine)
    first = await answer(engine, asked)
    whole = (*asked.prompt_ids, *ids(first))
    assert {delta.num_cached for delta in first} == {0}
    second = await answer(engine, greedy((*whole, 30, 31), 4))
    assert {delta.num_cached for delta in second} == {len(whole) - 1}  # the last token was never read


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
        closed_at = steps
        await answer(engine, request(engine, max_tokens=1))
    finally:
        loaded.model.forward = forward  # type: ignore[method-assign]
    assert steps - closed_at <= 3  # one that was under way, and those of the next request


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
        patch.setattr(SlotModel, "forward", fail)
        with pytest.raises(EngineError, match="OutOfMemoryError") as caught:
            await answer(engine, request(engine))
    assert "secret" not in str(caught.value)
    await engine.check_health()
    assert await answer(engine, request(engine, max_tokens=1))


async def test_a_sampler_that_fails_fails_its_own_request_alone(
    engine: NativeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = Sampler.choose

    def fail_with_seed_1(sampler: Sampler, logits: torch.Tensor) -> Choice:
        if sampler.sampling.seed == 1:
            raise RuntimeError("secret detail")
        return choose(sampler, logits)

    monkeypatch.setattr(Sampler, "choose", fail_with_seed_1)
    seeds = (0, 1, 2)
    asked = [request(engine, temperature=1.0, seed=seed, ignore_eos=True) for seed in seeds]
    told = await asyncio.gather(*(answer(engine, one) for one in asked), return_exceptions=True)
    failed = told.pop(1)
    assert isinstance(failed, EngineError)
    assert str(failed) == "generation failed: RuntimeError"
    assert [len(ids(deltas)) for deltas in told if isinstance(deltas, list)] == [20, 20]


async def test_a_schema_that_takes_too_much_fails_its_own_request_and_says_so(engine: NativeEngine) -> None:
    wide = {"type": "object", "properties": {f"p{index}": {} for index in range(3000)}}
    schema = json.dumps({"type": "array", "items": wide, "minItems": 1})
    likely = tuple((token, 100.0) for token in engine.encode_text("[{", add_special_tokens=False))
    told = await asyncio.gather(
        answer(engine, request(engine, 200, json_schema=schema, logit_bias=likely)),
        answer(engine, request(engine, ignore_eos=True)),
        return_exceptions=True,
    )
    assert isinstance(told[0], SamplingError)
    assert "more work than the limits allow" in str(told[0])
    assert isinstance(told[1], list)
    assert len(ids(told[1])) == 20


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


def test_the_model_says_how_long_it_reads_and_less_may_be_asked_for(tiny_model_dir: Path) -> None:
    assert load(tiny_model_dir).max_model_len == 512
    assert load(tiny_model_dir, max_model_len=100).max_model_len == 100
    with pytest.raises(ConfigError, match=r"args\.max_model_len: 513 .* at most 512"):
        load(tiny_model_dir, max_model_len=513)


def test_there_are_as_many_places_as_memory_has_room_for(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    config = loaded.model.config
    token_bytes = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    monkeypatch.setattr("ray_apps.engine.native.forward.free_memory", lambda device: 1000 * token_bytes / 0.8 + 1)
    assert fitting_slots(loaded.model, 3, 100) == 3
    assert fitting_slots(loaded.model, 16, 100) == 10
    with pytest.raises(ConfigError, match=r"args\.max_model_len: 1001 tokens take .* valid here: up to 1000"):
        fitting_slots(loaded.model, 16, 1001)


async def score(engine: NativeEngine, prompt: tuple[int, ...], max_tokens: int = 0) -> TokenDelta:
    """The first delta of an answer to `prompt`, whose own tokens are scored with the two likeliest beside each."""
    request = GenerationRequest("id", prompt, SamplingParams(max_tokens, temperature=0), prompt_logprobs=2)
    return (await answer(engine, request))[0]


@torch.no_grad()
def read(model: PreTrainedModel, prompt: tuple[int, ...]) -> Any:
    return model(torch.tensor([prompt]), output_hidden_states=True)


PROMPT = tuple((7 * index) % 400 + 20 for index in range(90))


@pytest.mark.parametrize("prefill_tokens", [7, 256])
async def test_a_prompt_is_scored_as_transformers_would_though_it_was_read_before(
    loaded: LoadedModel, transformers_model: PreTrainedModel, prefill_tokens: int
) -> None:
    expected = read(transformers_model, PROMPT).logits[0].log_softmax(dim=-1)
    engine = NativeEngine(loaded, max_num_seqs=2, prefill_tokens=prefill_tokens)
    try:
        await answer(engine, greedy(PROMPT, 3))
        for delta in [await score(engine, PROMPT), await score(engine, PROMPT, max_tokens=2)]:
            scored = delta.prompt_logprobs
            assert tuple(one.token_id for one in scored) == PROMPT[1:]
            for position, one in enumerate(scored):
                assert one.logprob == pytest.approx(float(expected[position, one.token_id]), abs=1e-4)
                assert one.likeliest[0][1] == pytest.approx(float(expected[position].max()), abs=1e-4)
                assert len(one.likeliest) == 2
        assert (delta.num_cached, engine.stats().num_cached_tokens) == (0, 0)
        only = await score(engine, PROMPT)
        assert (only.token_ids, only.text, only.finish_reason) == ((), "", "length")
    finally:
        engine.shutdown()


@pytest.mark.parametrize("prefill_tokens", [7, 256])
async def test_an_embedding_is_the_mean_of_the_last_hidden_states(
    loaded: LoadedModel, transformers_model: PreTrainedModel, prefill_tokens: int
) -> None:
    engine = NativeEngine(loaded, max_num_seqs=2, prefill_tokens=prefill_tokens)
    prompts = [PROMPT, PROMPT[:1], PROMPT[:30]]
    try:
        told, *found = await asyncio.gather(
            answer(engine, greedy(PROMPT, 20)), *(engine.embed(prompt) for prompt in prompts)
        )
    finally:
        engine.shutdown()
    assert ids(told) == plain(transformers_model, PROMPT, 20)
    for prompt, mean in zip(prompts, found, strict=True):
        output = read(transformers_model, prompt)
        torch.testing.assert_close(torch.tensor(mean), output.hidden_states[-1][0].mean(dim=0), atol=1e-4, rtol=1e-4)


async def test_it_says_what_it_does(engine: NativeEngine) -> None:
    assert engine.stats() == EngineStats()
    asked = request(engine, max_tokens=400, logit_bias=((1, -100.0),))
    async with aclosing(engine.generate(asked)) as deltas:
        await anext(deltas)
        stats = engine.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_prompt_tokens) == (1, 0, len(asked.prompt_ids))
        assert 0 < stats.cache_usage < 1
        assert stats.num_generated_tokens > 0
    await answer(engine, request(engine, max_tokens=1))
    assert engine.stats().num_cached_tokens > 0


async def test_texts_go_to_ids_and_back(engine: NativeEngine) -> None:
    text = "Who are you? 🙂 你好<|im_end|>"
    assert engine.decode(engine.encode_text(text)) == text
    assert engine.encode_text(text)[-1] == 1


async def test_nothing_is_made_for_a_request_to_an_engine_that_is_gone(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its device may be lost: whatever is put there fails by another name."""
    engine = NativeEngine(loaded)
    asked = request(engine)
    engine.shutdown()
    monkeypatch.setattr(Sampler, "__init__", lambda *args: pytest.fail("something was made"))
    with pytest.raises(EngineStoppedError):
        await answer(engine, asked)


async def test_an_adapter_is_refused_by_name(engine: NativeEngine) -> None:
    asked = replace(request(engine), adapter="pirate")
    with pytest.raises(UnsupportedError, match="'pirate'"):
        await answer(engine, asked)


async def test_a_pass_that_does_not_end_is_told_to_everyone_who_waits(
    loaded: LoadedModel, paused: Callable[[], None]
) -> None:
    engine = NativeEngine(loaded, max_num_seqs=1, patience_s=0.2)
    try:
        await engine.check_health()
        answers = [asyncio.create_task(answer(engine, request(engine))) for _ in range(2)]
        await asyncio.sleep(0.4)
        with pytest.raises(EngineStoppedError, match=r"a pass has not ended after 0\.2 s"):
            await engine.check_health()
        for one in answers:
            with pytest.raises(EngineStoppedError):
                await one
    finally:
        paused()
        engine.shutdown()
