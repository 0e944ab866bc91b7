import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from ray_apps.engine.fake import FakeEngine
from ray_apps.engine.protocol import Engine, EngineError, GenerationRequest, SamplingParams, UnsupportedError


def request(engine: Engine, text: str, max_tokens: int = 99) -> GenerationRequest:
    messages = [{"role": "user", "content": "before"}, {"role": "user", "content": text}]
    return GenerationRequest("id", tuple(engine.encode_chat(messages)), SamplingParams(max_tokens=max_tokens))


async def test_it_answers_with_the_last_user_message_in_whole_characters() -> None:
    engine = FakeEngine()
    told = [delta async for delta in engine.generate(request(engine, "né 🙂"))]
    assert [delta.text for delta in told] == ["n", "é", " ", "🙂", ""]
    assert told[-1].finish_reason == "stop"


async def test_it_fails_where_it_is_told_to() -> None:
    engine = FakeEngine(fail_after=2)
    deltas = engine.generate(request(engine, "abc"))
    assert [(await anext(deltas)).text, (await anext(deltas)).text] == ["a", "b"]
    with pytest.raises(EngineError):
        await anext(deltas)


async def test_closing_a_generator_stops_it() -> None:
    engine = FakeEngine()
    async with aclosing(engine.generate(request(engine, "abc"))) as deltas:
        await anext(deltas)
        assert engine.num_running == 1
    assert engine.num_running == 0


async def test_a_task_that_is_cancelled_stops_its_generator() -> None:
    engine = FakeEngine(pause_s=60)
    task = asyncio.ensure_future(anext(engine.generate(request(engine, "abc"))))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.num_running == 0


async def test_after_shutdown_it_refuses() -> None:
    engine = FakeEngine()
    engine.shutdown()
    with pytest.raises(EngineError):
        await engine.check_health()
    with pytest.raises(EngineError):
        await anext(engine.generate(request(engine, "abc")))


async def test_a_prompt_that_is_no_chat_is_echoed_whole_and_is_sure_to_come() -> None:
    engine = FakeEngine()
    prompt = tuple(engine.encode_text("né"))
    asked = GenerationRequest("id", prompt, SamplingParams(max_tokens=9), prompt_logprobs=1)
    told = [delta async for delta in engine.generate(asked)]
    assert "".join(delta.text for delta in told) == "né" == engine.decode(prompt)
    assert [one.token_id for one in told[0].prompt_logprobs] == list(prompt[1:])
    assert not any(delta.prompt_logprobs for delta in told[1:])
    nothing = [delta async for delta in engine.generate(replace(asked, sampling=SamplingParams(max_tokens=0)))]
    assert [(delta.text, delta.finish_reason) for delta in nothing] == [("", "length")]
    assert engine.stats().num_prompt_tokens == 2 * len(prompt)


async def test_it_has_the_adapters_that_it_is_told() -> None:
    engine = FakeEngine(adapters=["a"])
    asked = replace(request(engine, "x"), adapter="a")
    assert [delta.text async for delta in engine.generate(asked)] == ["x", ""]
    with pytest.raises(UnsupportedError, match="no adapter 'b'; valid: a"):
        await anext(engine.generate(replace(asked, adapter="b")))


async def test_an_answer_that_ignores_its_end_goes_on_to_its_limit() -> None:
    engine = FakeEngine()
    asked = replace(request(engine, "ab"), sampling=SamplingParams(max_tokens=5, ignore_eos=True))
    told = [delta async for delta in engine.generate(asked)]
    assert ("".join(delta.text for delta in told), told[-1].finish_reason) == ("abab", "length")
