from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ray_apps.engine.fake import FakeEngine
from ray_apps.engine.protocol import GenerationRequest, SamplingParams, TokenDelta
from ray_apps.serve.backend import ChatJob, EngineBackend, answer_budget
from ray_apps.serve.errors import ApiError


@given(num_prompt=st.integers(0, 50), wanted=st.none() | st.integers(1, 50), limit=st.integers(2, 50))
def test_an_answer_gets_what_it_asks_for_or_what_is_left(num_prompt: int, wanted: int | None, limit: int) -> None:
    assume(num_prompt + (wanted or 1) <= limit)
    assert answer_budget(num_prompt, wanted, limit) == (wanted or limit - num_prompt)


@given(num_prompt=st.integers(0, 50), wanted=st.none() | st.integers(1, 50), limit=st.integers(2, 50))
def test_a_chat_that_does_not_fit_is_refused(num_prompt: int, wanted: int | None, limit: int) -> None:
    assume(num_prompt + (wanted or 1) > limit)
    with pytest.raises(ApiError, match=f"{limit} tokens.* {num_prompt}"):
        answer_budget(num_prompt, wanted, limit)


async def test_counts_grow_with_the_answer() -> None:
    job = ChatJob("id", ({"role": "user", "content": "a🙂"},))
    deltas = [delta async for delta in EngineBackend(FakeEngine()).chat(job)]
    assert [delta.num_completion_tokens for delta in deltas] == [1, 5, 6]
    assert {delta.num_prompt_tokens for delta in deltas} == {7}


async def test_several_answers_have_seeds_of_their_own() -> None:
    asked: list[GenerationRequest] = []

    class Recording(FakeEngine):
        def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
            asked.append(request)
            return super().generate(request)

    sampling = SamplingParams(max_tokens=0, seed=2**63 - 1)
    job = ChatJob("id", ({"role": "user", "content": "ab"},), max_tokens=1, sampling=sampling, num_answers=3)
    deltas = [delta async for delta in EngineBackend(Recording()).chat(job)]
    assert sorted(delta.index for delta in deltas) == [0, 1, 2]
    assert [request.sampling.seed for request in asked] == [2**63 - 1, -(2**63), -(2**63) + 1]
    assert {request.sampling.max_tokens for request in asked} == {1}


@pytest.mark.parametrize("fails", [False, True])
async def test_all_answers_end_with_their_consumer_or_with_the_first_that_fails(fails: bool) -> None:
    engine = FakeEngine(pause_s=0.001, fail_after=3 if fails else None)
    job = ChatJob("id", ({"role": "user", "content": "x" * 1000},), num_answers=3)
    with suppress(ApiError):
        async with aclosing(EngineBackend(engine).chat(job)) as deltas:
            async for _ in deltas:
                if not fails:
                    break
    assert engine.num_running == 0


async def test_a_failing_engine_is_told_without_its_reason() -> None:
    deltas = EngineBackend(FakeEngine(fail_after=1)).chat(ChatJob("id", ({"role": "user", "content": "ab"},)))
    assert (await anext(deltas)).text == "a"
    with pytest.raises(ApiError) as caught:
        await anext(deltas)
    assert caught.value.failure.status == 500
    assert "told to fail" not in caught.value.failure.message
