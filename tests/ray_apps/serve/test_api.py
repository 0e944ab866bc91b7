import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ray_apps.engine.fake import FakeEngine
from ray_apps.serve.api import create_api
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.routing import ServedModel
from tests.ray_apps.serve.conftest import Client, chunks, events

Ask = Callable[..., dict[str, Any]]
CHAT = "/v1/chat/completions"


async def test_an_answer_has_the_shape_that_openai_documents(api_client: Client, ask: Ask) -> None:
    async with api_client() as client:
        response = await client.post(CHAT, json=ask("né 🙂"))
    completion = ChatCompletion.model_validate(response.json(), strict=True)
    assert completion.choices[0].message.content == "né 🙂"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "fake"
    assert completion.id.startswith("chatcmpl-")
    assert completion.usage is not None
    assert completion.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": len("né 🙂".encode()) + 2,
        "completion_tokens": len("né 🙂".encode()) + 1,
        "total_tokens": 2 * len("né 🙂".encode()) + 3,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_a_stream_opens_with_a_role_and_ends_with_a_reason(api_client: Client, ask: Ask) -> None:
    async with api_client(FakeEngine(pause_s=0.04)) as client:
        response = await client.post(CHAT, json=ask("né🙂", stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    told = chunks(response)
    for chunk in told:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert [chunk["choices"][0]["delta"] for chunk in told] == [
        {"role": "assistant", "content": ""},
        {"content": "n"},
        {"content": "é"},
        {"content": "🙂"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in told] == [None] * 4 + ["stop"]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in told}) == 1


async def test_a_stream_counts_tokens_where_it_is_asked_to(api_client: Client, ask: Ask) -> None:
    async with api_client() as client:
        plain = await client.post(CHAT, json=ask(stream=True))
        counted = await client.post(CHAT, json=ask(stream=True, stream_options={"include_usage": True}))
        whole = await client.post(CHAT, json=ask())
    *others, last = chunks(counted)
    assert last["choices"] == []
    assert last["usage"] == whole.json()["usage"]
    assert all(chunk["usage"] is None for chunk in [*others, *chunks(plain)])


@pytest.mark.parametrize(("path", "asked"), [(CHAT, {}), ("/v1/completions", {"prompt": "hello", "messages": None})])
async def test_load_generators_get_the_counts_so_far_in_every_chunk(
    api_client: Client, ask: Ask, path: str, asked: dict[str, Any]
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {key: value for key, value in {**ask(), **asked}.items() if value is not None}
    async with api_client(FakeEngine(pause_s=0.04)) as client:
        told = chunks(await client.post(path, json={**body, "stream": True, "stream_options": options}))
        plain = chunks(
            await client.post(path, json={**body, "stream": True, "stream_options": {**options, "include_usage": None}})
        )
    counts = [chunk["usage"]["completion_tokens"] for chunk in told]
    assert counts == sorted(counts)
    assert set(counts) >= {1, 2, 3, 4, 5}
    assert told[-1]["usage"] == told[-2]["usage"]
    assert all(chunk["usage"] is None for chunk in plain)


@given(
    text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30),
    max_tokens=st.integers(1, 60),
    stop=st.lists(st.text("ab 你🙂", min_size=1, max_size=2), max_size=4),
)
async def test_a_stream_adds_up_to_the_answer_in_one_piece(
    api_client: Client, ask: Ask, text: str, max_tokens: int, stop: list[str]
) -> None:
    body = ask(text, max_tokens=max_tokens, stop=stop)
    async with api_client() as client:
        whole = (await client.post(CHAT, json=body)).json()["choices"][0]
        told = [chunk["choices"][0] for chunk in chunks(await client.post(CHAT, json={**body, "stream": True}))]
    assert "".join(choice["delta"].get("content", "") for choice in told) == whole["message"]["content"]
    assert told[-1]["finish_reason"] == whole["finish_reason"]
    assert text.startswith(whole["message"]["content"])


@pytest.mark.parametrize(
    ("fields", "content", "reason"),
    [
        ({"max_tokens": 3}, "abc", "length"),
        ({"max_completion_tokens": 3}, "abc", "length"),
        ({"stop": "d"}, "abc", "stop"),
        ({"stop": ["x", "bc"]}, "a", "stop"),
        ({"stop": None}, "abcdef", "stop"),
    ],
)
async def test_limits_and_stop_strings_end_an_answer(
    api_client: Client, ask: Ask, fields: dict[str, Any], content: str, reason: str
) -> None:
    async with api_client() as client:
        choice = (await client.post(CHAT, json=ask("abcdef", **fields))).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (content, reason)


async def test_several_answers_are_told_apart(api_client: Client, ask: Ask) -> None:
    async with api_client() as client:
        whole = (await client.post(CHAT, json=ask("né🙂", n=3))).json()
        told = chunks(await client.post(CHAT, json=ask("né🙂", n=3, stream=True)))
    ChatCompletion.model_validate(whole, strict=True)
    assert [(choice["index"], choice["message"]["content"]) for choice in whole["choices"]] == [
        (index, "né🙂") for index in range(3)
    ]
    assert whole["usage"]["completion_tokens"] == 3 * (len("né🙂".encode()) + 1)
    for index in range(3):
        mine = [chunk["choices"][0] for chunk in told if chunk["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "né🙂"
        assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["stop"]


async def test_tokens_are_told_with_their_log_probabilities(api_client: Client, ask: Ask) -> None:
    body = ask("aé", logprobs=True, top_logprobs=1)
    async with api_client() as client:
        whole = (await client.post(CHAT, json=body)).json()
        told = chunks(await client.post(CHAT, json={**body, "stream": True}))
        without = (await client.post(CHAT, json=ask("aé", logprobs=True))).json()
    completion = ChatCompletion.model_validate(whole, strict=True)
    assert completion.choices[0].logprobs is not None
    content = completion.choices[0].logprobs.content
    assert content is not None
    assert b"".join(bytes(one.bytes or []) for one in content).decode() == "aé"
    assert [one.top_logprobs[0].bytes for one in content] == [one.bytes for one in content]
    assert [one.token for one in content] == ["a", "\ufffd", "\ufffd", ""]
    streamed = [one for chunk in told for one in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == whole["choices"][0]["logprobs"]["content"]
    assert without["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_every_role_and_parts_of_text_are_understood(api_client: Client, ask: Ask) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "one", "name": "ann"},
        {"role": "assistant", "content": "two", "refusal": None, "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "three"}, {"type": "text", "text": "four"}]},
    ]
    async with api_client() as client:
        response = await client.post(CHAT, json=ask(messages=messages))
    assert response.json()["choices"][0]["message"]["content"] == "three\nfour"


async def test_an_answer_can_be_sent_back_as_it_came(api_client: Client, ask: Ask) -> None:
    async with api_client() as client:
        message = (await client.post(CHAT, json=ask())).json()["choices"][0]["message"]
        again = {"messages": [*ask()["messages"], message, *ask("again")["messages"]]}
        response = await client.post(CHAT, json=ask(**again))
    assert response.json()["choices"][0]["message"]["content"] == "again"


async def test_models_are_listed_and_found_by_name(api_client: Client) -> None:
    async with api_client(model="org/name") as client:
        (card,) = (await client.get("/v1/models")).json()["data"]
        assert (await client.get("/v1/models/org/name")).json() == card
        missing = await client.get("/v1/models/other")
    assert card["id"] == "org/name"
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_aliases_and_adapters_are_listed_with_what_they_stand_for(api_client: Client, ask: Ask) -> None:
    engine = FakeEngine(adapters=["pirate"])
    async with api_client(engine, "base", aliases=("gpt-4o",), adapters=("pirate", "lost")) as client:
        cards = (await client.get("/v1/models")).json()["data"]
        names = ("base", "gpt-4o", "pirate")
        answers = [(await client.post(CHAT, json=ask(model=name))).json()["model"] for name in names]
        lost = await client.post(CHAT, json=ask(model="lost"))
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        ("base", "base", None),
        ("gpt-4o", "base", None),
        ("pirate", "pirate", "base"),
        ("lost", "lost", "base"),
    ]
    assert answers == ["base", "base", "pirate"]
    assert (lost.status_code, lost.json()["error"]["param"]) == (400, "model")


async def test_each_model_gets_its_own_requests(ask: Ask) -> None:
    engines = {name: FakeEngine(max_model_len=length) for name, length in (("short", 20), ("long", 200))}
    api = create_api([ServedModel(name, EngineBackend(engine)) for name, engine in engines.items()])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as client:
        statuses = {name: (await client.post(CHAT, json=ask("x" * 50, model=name))).status_code for name in engines}
        assert (await client.get("/health")).status_code == 200
        engines["long"].shutdown()
        assert (await client.get("/health")).status_code == 503
    assert statuses == {"short": 400, "long": 200}


async def test_health_follows_the_engine(api_client: Client) -> None:
    engine = FakeEngine()
    async with api_client(engine) as client:
        assert (await client.get("/health")).status_code == (await client.head("/health")).status_code == 200
        engine.shutdown()
        response = await client.get("/health")
        assert (await client.head("/health")).status_code == 503
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "server_error"
    assert response.headers["retry-after"] == "1"


async def test_the_context_is_filled_to_the_last_token_and_not_beyond(api_client: Client, ask: Ask) -> None:
    async with api_client(FakeEngine(max_model_len=20)) as client:
        fits = await client.post(CHAT, json=ask("0123456789", max_tokens=8))
        unbounded = await client.post(CHAT, json=ask("0123456789"))
        too_long = [
            await client.post(CHAT, json=ask("0123456789", max_tokens=9)),
            await client.post(CHAT, json=ask("0" * 18, stream=True)),
        ]
    assert fits.json()["choices"][0]["message"]["content"] == "01234567"
    assert unbounded.json()["usage"]["completion_tokens"] == 8
    for response in too_long:
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert "20 tokens" in response.json()["error"]["message"]


async def test_messages_that_the_template_refuses_are_a_bad_request(api_client: Client, ask: Ask) -> None:
    async with api_client() as client:
        response = await client.post(CHAT, json=ask(messages=[{"role": "assistant", "content": "I talk to myself"}]))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"
    assert "no user message" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_is_a_status(api_client: Client, ask: Ask, stream: bool) -> None:
    async with api_client(FakeEngine(fail_after=0)) as client:
        response = await client.post(CHAT, json=ask(stream=stream))
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"


async def test_a_failure_in_a_stream_is_an_event_and_the_last_one(api_client: Client, ask: Ask) -> None:
    async with api_client(FakeEngine(fail_after=2)) as client:
        whole = await client.post(CHAT, json=ask())
        response = await client.post(CHAT, json=ask(stream=True))
    assert whole.status_code == 500
    assert response.status_code == 200
    *told, last = events(response)
    assert [json.loads(data)["choices"][0]["delta"]["content"] for data in told] == ["", "h", "e"]
    assert json.loads(last)["error"]["code"] == "internal_error"


async def test_the_openai_client_raises_what_a_stream_reports(api_client: Client, ask: Ask) -> None:
    client = openai.AsyncOpenAI(
        base_url="http://test/v1", api_key="none", http_client=api_client(FakeEngine(fail_after=2)), max_retries=0
    )
    stream = await client.chat.completions.create(**ask(stream=True))
    with pytest.raises(openai.APIError, match="could not be generated"):
        [chunk async for chunk in stream]
    await client.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_the_engine(api_client: Client, ask: Ask, stream: bool) -> None:
    engine = FakeEngine(pause_s=0.01)
    async with api_client(engine) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.post(CHAT, json=ask("x" * 3000, stream=stream)), timeout=0.2)
    assert engine.num_running == 0
