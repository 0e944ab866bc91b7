"""What the ingress makes of what a replica says, with the two in one process."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from ray_apps.engine.fake import FakeEngine
from ray_apps.serve.api import create_api
from ray_apps.serve.auth import ApiKeys
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.census import Count
from ray_apps.serve.guards import guarded
from ray_apps.serve.metered import MeteredBackend
from ray_apps.serve.policy import Limits, Security
from ray_apps.serve.replica import Replica
from ray_apps.serve.replicas import QueueLimits, ReplicaBackend, give_up
from ray_apps.serve.request_log import Journal
from ray_apps.serve.routing import ServedModel


class Answer:
    """What a handle gives back: items, and a way to give up."""

    def __init__(self, items: AsyncGenerator[Any, None]) -> None:
        self._items = items
        self._next: asyncio.Task[Any] | None = None

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> Any:
        self._next = asyncio.ensure_future(anext(self._items))
        return await self._next

    def cancel(self) -> None:
        if self._next:
            self._next.cancel()


class Handle:
    """A handle to `replica`, which is here."""

    app_name = deployment_name = "here"

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def options(self, **options: Any) -> "Handle":
        return self

    def __getattr__(self, method: str) -> Any:
        class Method:
            remote = staticmethod(lambda argument: Answer(getattr(self._replica, method)(argument)))

        return Method


class OneReplica:
    """Counts one."""

    latest = Count(running=1)

    def __init__(self, app: str, deployment: str) -> None:
        pass


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def app(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> ASGIApp:
    """Everything that answers a request, on a replica that takes 20 ms for a token."""
    monkeypatch.setattr("ray_apps.serve.replicas.Census", OneReplica)
    replica = object.__new__(Replica)
    replica._backend = EngineBackend(FakeEngine(pause_s=0.02))
    handle: Any = Handle(replica)
    limits = Limits(tokens_per_minute=1000)
    backend = MeteredBackend(ReplicaBackend(handle, QueueLimits(4, 4, 1)), "m", limits=limits)
    return guarded(
        create_api([ServedModel("m", backend)]),
        ApiKeys(),
        Security(allow_open=True),
        limits,
        journal=Journal(lines.append),
    )


def client(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_runs_out_of_time_pays_for_its_prompt_and_for_what_it_was_told(
    app: ASGIApp, lines: list[str], stream: bool
) -> None:
    body = {"model": "m", "prompt": "x" * 300, "max_tokens": 300, "stream": stream}
    async with client(app) as asking:
        given_up = await asking.post("/v1/completions", json=body, headers={"x-request-timeout": "0.5"})
        after = await asking.post("/v1/completions", json={**body, "prompt": "x", "max_tokens": 1})
        left = int(after.headers["x-ratelimit-remaining-tokens"])
    told = json.loads(lines[0])
    assert "deadline_exceeded" in given_up.text
    assert told["prompt_tokens"] == 300
    assert told["completion_tokens"] > 0 if stream else told["completion_tokens"] == 0
    assert left < 1000 - 300 - told["completion_tokens"] + 50  # a minute's worth comes back all the time


async def test_a_client_that_leaves_pays_for_its_prompt(app: ASGIApp, lines: list[str]) -> None:
    async with client(app) as asking:
        body = {"model": "m", "prompt": "x" * 300, "max_tokens": 300}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asking.post("/v1/completions", json=body), 0.3)
    (line,) = map(json.loads, lines)
    assert (line["status"], line["prompt_tokens"], line["completion_tokens"]) == (None, 300, 0)
    assert line["queue_s"] is not None


async def test_embeddings_count_their_texts_before_they_are_made(
    app: ASGIApp, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(engine: FakeEngine, prompt_ids: Sequence[int]) -> list[float]:
        await asyncio.sleep(60)
        return []

    async with client(app) as asking:
        body = {"model": "m", "input": ["abc", "de"]}
        done = await asking.post("/v1/embeddings", json=body)
        monkeypatch.setattr(FakeEngine, "embed", never)
        late = await asking.post("/v1/embeddings", json=body, headers={"x-request-timeout": "0.3"})
    assert (done.status_code, late.status_code) == (200, 504)
    assert [json.loads(line)["prompt_tokens"] for line in lines] == [5, 5]


async def test_what_cannot_be_done_costs_nothing(app: ASGIApp, lines: list[str]) -> None:
    async with client(app) as asking:
        too_long = await asking.post("/v1/completions", json={"model": "m", "prompt": "x" * 5000})
        neither = await asking.post("/v1/embeddings", json={"model": "m", "input": "x" * 5000})
    assert (too_long.status_code, neither.status_code) == (400, 400)
    assert [json.loads(line)["prompt_tokens"] for line in lines] == [0, 0]


async def test_an_answer_in_one_piece_is_timed_by_its_replica(app: ASGIApp, lines: list[str]) -> None:
    async with client(app) as asking:
        await asking.post("/v1/completions", json={"model": "m", "prompt": "x" * 20, "max_tokens": 20})
    (line,) = map(json.loads, lines)
    assert line["queue_s"] < line["first_token_s"] < line["duration_s"] / 2


def test_a_call_is_given_up_though_a_replica_took_it_on_a_moment_ago() -> None:
    given_up: list[str] = []
    taken: Future[Any] = Future()
    call: Any = SimpleNamespace(cancel=lambda: given_up.append("call"), _replica_result_future=taken)
    give_up(call)
    taken.set_result(SimpleNamespace(cancel=lambda: given_up.append("result")))
    give_up(call)
    assert given_up == ["call", "call", "result"]
