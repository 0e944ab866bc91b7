"""Every way in which an endpoint can fail, over real HTTP."""

import asyncio
import socket

import pytest

from data_prep.errors import EvalError
from ray_apps.evaluate.client import CallError, Client, Patience, RefusedError, Reply, Target
from tests.ray_apps.evaluate.scripted import CUT_SHORT, GONE, Endpoint, Raw, completion, refusal, serving

HASTY = Patience(tries=3, timeout_s=5, first_pause_s=0.01, max_pause_s=0.05)
HELLO = [{"role": "user", "content": "hello"}]


async def ask(endpoint: Endpoint, patience: Patience = HASTY, key: str | None = None) -> Reply:
    async with Client(Target(endpoint.url, "m", key), patience=patience) as client:
        return await client.chat(HELLO, temperature=0.5, max_tokens=7)


async def test_a_call_is_openai_s() -> None:
    with serving(lambda body: "hi") as endpoint:
        assert await ask(endpoint, key="sk-1") == Reply("hi", "stop", 10, 3)
    assert endpoint.asked == [{"model": "m", "messages": HELLO, "temperature": 0.5, "max_tokens": 7}]
    assert endpoint.keys == ["Bearer sk-1"]


@pytest.mark.parametrize(
    "failing",
    [
        refusal(429, "slow down"),
        refusal(503, "no room"),
        Raw(500, b"<html>oops</html>"),
        Raw(200, b"garbage"),
        Raw(200, b'{"choices": []}'),
        Raw(200, b"[1, 2]"),
        Raw(200, b"null"),
        completion(None),
        completion("x", None),
        completion("x", "tool_calls"),
        GONE,
        CUT_SHORT,
    ],
)
async def test_what_may_help_is_tried_again(failing: Raw | str) -> None:
    said = [failing, failing, "at last"]
    with serving(lambda body: said.pop(0)) as endpoint:
        assert (await ask(endpoint)).text == "at last"
        said[:] = [failing] * 3
        with pytest.raises(CallError):
            await ask(endpoint)
    assert len(endpoint.asked) == 6


async def test_retry_after_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    said = [refusal(429, "slow down", **{"Retry-After": "7"}), refusal(429, "x", **{"Retry-After": "soon"}), "ok"]
    with serving(lambda body: said.pop(0)) as endpoint:
        async with Client(Target(endpoint.url, "m"), patience=Patience(max_pause_s=60, first_pause_s=1)) as client:
            monkeypatch.setattr(asyncio, "sleep", note)
            await client.chat(HELLO)
    assert pauses[0] == 7
    assert 1 <= pauses[1] <= 3  # twice the first pause, by half


async def test_an_answer_that_does_not_come_is_given_up() -> None:
    with serving(lambda body: "late") as endpoint:
        endpoint.pause_s = 0.5
        with pytest.raises(CallError, match=r"no answer within 0\.1 s"):
            await ask(endpoint, Patience(tries=2, timeout_s=0.1, first_pause_s=0.01))


@pytest.mark.parametrize(
    ("failing", "words"),
    [
        (refusal(401, "Incorrect API key"), "the key is not accepted: Incorrect API key"),
        (refusal(403, "not yours"), "the key is not accepted"),
        (refusal(404, "no such model"), "has no model 'm': no such model"),
    ],
)
async def test_what_would_fail_for_every_call_is_told_at_once(failing: Raw, words: str) -> None:
    with serving(lambda body: failing) as endpoint, pytest.raises(EvalError, match=words):
        await ask(endpoint)
    assert len(endpoint.asked) == 1


async def test_a_refused_request_is_not_sent_again() -> None:
    refused = pytest.raises(RefusedError, match=r"refused \(400\): too long")
    with serving(lambda body: refusal(400, "too long")) as endpoint, refused:
        await ask(endpoint)
    assert len(endpoint.asked) == 1


async def test_moderation_is_no_answer() -> None:
    withheld = completion("", "content_filter")
    with serving(lambda body: withheld) as endpoint, pytest.raises(CallError, match="withheld"):
        await ask(endpoint)


async def test_an_endpoint_that_is_not_there_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        async with Client(Target(url, "m"), patience=HASTY) as client:
            with pytest.raises(EvalError, match=f"^{url} cannot be reached"):
                await client.chat(HELLO)
    for url in ("ftp://x", "http://[", "nowhere"):
        async with Client(Target(url, "m"), patience=HASTY) as client:
            with pytest.raises(EvalError, match=r"nowhere|ftp|http"):
                await client.chat(HELLO)


async def test_no_more_calls_are_under_way_than_wanted() -> None:
    with serving(lambda body: "hi") as endpoint:
        endpoint.pause_s = 0.05
        async with Client(Target(endpoint.url, "m"), concurrency=3) as client:
            await asyncio.gather(*(client.chat(HELLO) for _ in range(12)))
    assert endpoint.most_at_once == 3
