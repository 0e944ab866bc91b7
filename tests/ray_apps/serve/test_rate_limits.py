from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from ray_apps.serve.rate_limits import Bucket, RateLimit, Rates
from ray_apps.serve.record import RequestRecord, begin, current_request


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Takes ten tokens for the prompt and as many for the answer as the path says."""
    record = current_request()
    record.num_prompt_tokens, record.num_completion_tokens = 10, int(scope["path"].removeprefix("/"))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def client(clock: Clock, requests: int | None, tokens: int | None) -> httpx.AsyncClient:
    limit = RateLimit(answer, Rates(requests, tokens, clock))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begin(RequestRecord(key_name=dict(scope["headers"]).get(b"key", b"ann").decode()))
        await limit(scope, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_requests_beyond_the_minute_are_a_429_that_says_when_to_come_back() -> None:
    clock = Clock()
    async with client(clock, 3, None) as asking:
        statuses = [(await asking.post("/0")).status_code for _ in range(3)]
        refused = await asking.post("/0")
        other = await asking.post("/0", headers={"key": "bob"})
        listed = await asking.get("/0")
        clock.now_s += int(refused.headers["retry-after"])
        again = [(await asking.post("/0")).status_code for _ in range(2)]
    assert statuses == [200] * 3
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.headers["retry-after"] == "20"
    assert (other.status_code, listed.status_code) == (200, 200)
    assert again == [200, 429]


async def test_tokens_are_taken_when_they_are_known_and_a_debt_is_waited_off() -> None:
    clock = Clock()
    async with client(clock, None, 60) as asking:
        assert (await asking.post("/110")).status_code == 200
        refused = await asking.post("/0")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "61")
        assert "60 tokens per minute" in refused.json()["error"]["message"]
        clock.now_s += 60
        assert (await asking.post("/0")).status_code == 429
        clock.now_s += 1
        assert (await asking.post("/0")).status_code == 200


async def test_every_answer_tells_what_is_left() -> None:
    async with client(Clock(), 60, 1000) as asking:
        await asking.post("/90")
        headers = (await asking.post("/0")).headers
    assert {name: headers[name] for name in headers if name.startswith("x-ratelimit")} == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "58",
        "x-ratelimit-reset-requests": "2.000s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "900",
        "x-ratelimit-reset-tokens": "6.000s",
    }


@given(per_minute=st.integers(1, 600), steps=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50)), max_size=40))
def test_never_more_is_let_in_than_a_full_bucket_and_the_time_give(per_minute: int, steps: list[Any]) -> None:
    clock = Clock()
    bucket = Bucket(per_minute, clock)
    taken = 0
    for wait_s, wanted in steps:
        clock.now_s += wait_s
        for _ in range(wanted):
            if bucket.level >= 1:
                bucket.take(1)
                taken += 1
    assert taken <= per_minute + clock.now_s * per_minute / 60 + 1e-6


@given(per_minute=st.integers(1, 600), debt=st.integers(0, 2000), level=st.integers(1, 600))
def test_after_the_wait_it_is_there(per_minute: int, debt: int, level: int) -> None:
    clock = Clock()
    bucket = Bucket(per_minute, clock)
    bucket.take(debt)
    wanted = min(level, per_minute)
    clock.now_s += bucket.wait_s(wanted)
    assert bucket.level == pytest.approx(max(wanted, per_minute - debt), abs=1e-6)
