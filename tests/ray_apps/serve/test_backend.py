import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ray_apps.engine.fake import FakeEngine
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


async def test_a_failing_engine_is_told_without_its_reason() -> None:
    deltas = EngineBackend(FakeEngine(fail_after=1)).chat(ChatJob("id", ({"role": "user", "content": "ab"},)))
    assert (await anext(deltas)).text == "a"
    with pytest.raises(ApiError) as caught:
        await anext(deltas)
    assert caught.value.failure.status == 500
    assert "told to fail" not in caught.value.failure.message
