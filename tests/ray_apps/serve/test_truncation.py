from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ray_apps.engine.fake import FakeEngine
from ray_apps.serve.api import create_api
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.errors import ApiError
from ray_apps.serve.jobs import Truncation
from ray_apps.serve.routing import ServedModel
from ray_apps.serve.truncation import Messages, answer_budget, shortest_cut

CHAT = "/v1/chat/completions"


def size(messages: Messages) -> int:
    return sum(len(message["content"]) for message in messages)


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.text("x", max_size=9)}
    )
)


@given(messages=MESSAGES, room=st.integers(0, 60))
def test_as_few_rounds_go_as_it_takes(messages: list[dict[str, str]], room: int) -> None:
    kept = [*shortest_cut(tuple(messages), lambda some: size(some) <= room)]
    assert [one for one in kept if one["role"] == "system"] == [one for one in messages if one["role"] == "system"]
    users = [number for number, one in enumerate(messages) if one["role"] == "user"]
    last = messages[users[-1] :] if users else messages
    assert kept[len(kept) - len(last) :] == last
    if size(messages) <= room:
        assert kept == messages
    if len(kept) < len(messages) and size(kept) <= room:  # one round more would have been too much
        others = [one for one in kept if one["role"] != "system"]
        spoken = [one for one in messages if one["role"] != "system"]
        begun = len(spoken) - len(others)
        # What comes before the first user belongs to the first round.
        starts = [0, *[number for number, one in enumerate(spoken) if one["role"] == "user"][1:]]
        before = max(number for number in starts if number < begun)
        assert size(kept) + size(spoken[before:begun]) > room


def client(truncate: Truncation) -> httpx.AsyncClient:
    backend = EngineBackend(FakeEngine(max_model_len=80), truncate=truncate)
    transport = httpx.ASGITransport(create_api([ServedModel("fake", backend)]), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def chat(**fields: Any) -> dict[str, Any]:
    turns = [("system", "be kind"), ("user", "x" * 20), ("assistant", "y" * 20), ("user", "z" * 20), ("assistant", "w")]
    messages = [{"role": role, "content": text} for role, text in [*turns, ("user", "the last")]]
    return {"model": "fake", "messages": messages, "max_tokens": 9, **fields}


async def test_the_oldest_turns_go_and_it_is_said(ask: Callable[..., Any]) -> None:
    async with client("oldest_turns") as asking:
        whole = (await asking.post(CHAT, json=chat())).json()
        stream = (await asking.post(CHAT, json=chat(stream=True))).text
        short = (await asking.post(CHAT, json=ask())).json()
        refused = await asking.post(CHAT, json=chat(truncate="off"))
    assert (whole["choices"][0]["message"]["content"], whole["dropped_messages"]) == ("the last", 2)
    assert '"dropped_messages":2' in stream
    assert short["dropped_messages"] == 0
    assert refused.json()["error"]["code"] == "context_length_exceeded"


async def test_without_it_nothing_is_left_out_unless_asked() -> None:
    async with client("off") as asking:
        assert (await asking.post(CHAT, json=chat())).json()["error"]["code"] == "context_length_exceeded"
        assert (await asking.post(CHAT, json=chat(truncate="oldest_turns"))).json()["dropped_messages"] == 2
        wrong = await asking.post(CHAT, json=chat(truncate="newest"))
        assert wrong.json()["error"]["param"] == "truncate"


@pytest.mark.parametrize("text", ["x" * 200])
async def test_a_last_message_that_does_not_fit_is_refused(text: str, ask: Callable[..., Any]) -> None:
    async with client("oldest_turns") as asking:
        assert (await asking.post(CHAT, json=ask(text))).json()["error"]["code"] == "context_length_exceeded"


@given(num_prompt=st.integers(0, 50), wanted=st.none() | st.integers(0, 50), limit=st.integers(2, 50))
def test_an_answer_gets_what_it_asks_for_or_what_is_left(num_prompt: int, wanted: int | None, limit: int) -> None:
    assume(num_prompt + (1 if wanted is None else wanted) <= limit)
    assert answer_budget(num_prompt, wanted, limit) == (limit - num_prompt if wanted is None else wanted)


@given(num_prompt=st.integers(0, 50), wanted=st.none() | st.integers(0, 50), limit=st.integers(2, 50))
def test_a_chat_that_does_not_fit_is_refused(num_prompt: int, wanted: int | None, limit: int) -> None:
    assume(num_prompt + (1 if wanted is None else wanted) > limit)
    with pytest.raises(ApiError, match=f"{limit} tokens.* {num_prompt}"):
        answer_budget(num_prompt, wanted, limit)
