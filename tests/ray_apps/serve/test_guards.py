"""The API behind all of its guards, as the ingress has it, without a server."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from ray_apps.engine.fake import FakeEngine
from ray_apps.serve.api import create_api
from ray_apps.serve.auth import KEYS_VARIABLE, load_keys
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.guards import guarded
from ray_apps.serve.metered import MeteredBackend
from ray_apps.serve.metrics import RequestMetrics
from ray_apps.serve.policy import Limits, Security
from ray_apps.serve.request_log import Journal
from ray_apps.serve.routing import ServedModel
from tests.ray_apps.serve.test_metrics import Library

CHAT = "/v1/chat/completions"
KEYS = load_keys(None, {KEYS_VARIABLE: "ann: sk-ann,bob: sk-bob"})
ANN, BOB = {"Authorization": "Bearer sk-ann"}, {"Authorization": "Bearer sk-bob"}
Ask = Callable[..., dict[str, Any]]


class Endpoint:
    """A guarded API on a fake engine, with what it writes down."""

    def __init__(self, limits: Limits | None = None, security: Security | None = None) -> None:
        self.lines: list[str] = []
        self.library = Library()
        self.engine = FakeEngine()
        metrics, limits = RequestMetrics(self.library), limits or Limits()
        backend = MeteredBackend(EngineBackend(self.engine), "fake", limits=limits, metrics=metrics)
        self.app = guarded(
            create_api([ServedModel("fake", backend)]),
            KEYS,
            security or Security(),
            limits,
            journal=Journal(self.lines.append, metrics=metrics),
        )

    def client(self, **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test", **options)


async def test_an_answer_is_one_line_and_its_metrics(ask: Ask) -> None:
    endpoint = Endpoint()
    async with endpoint.client(headers=ANN) as client:
        response = await client.post(CHAT, json=ask("hello", stream=True))
    line = json.loads(endpoint.lines[0])
    assert line["request_id"] == response.headers["x-request-id"]
    assert (line["key"], line["model"], line["status"]) == ("ann", "fake", 200)
    assert (line["prompt_tokens"], line["completion_tokens"], line["finish_reasons"]) == (7, 6, ["stop"])
    assert "hello" not in endpoint.lines[0]
    assert endpoint.library.told("vllm_generation_tokens") == [6]
    assert endpoint.library.told("vicuna_http_requests") == [1]


async def test_tokens_count_for_the_key_that_took_them(ask: Ask) -> None:
    endpoint = Endpoint(Limits(tokens_per_minute=20))
    async with endpoint.client() as client:
        first = await client.post(CHAT, json=ask("hello"), headers=ANN)
        again = await client.post(CHAT, json=ask("hello"), headers=ANN)
        refused = await client.post(CHAT, json=ask("hello"), headers=ANN)
        other = await client.post(CHAT, json=ask("hello"), headers=BOB)
        unknown = await client.post(CHAT, json=ask("hello"))
    statuses = [response.status_code for response in (first, again, refused, other, unknown)]
    assert statuses == [200, 200, 429, 200, 401]
    assert first.headers["x-ratelimit-limit-tokens"] == "20"
    assert again.headers["x-ratelimit-remaining-tokens"] in ("7", "8")
    assert int(refused.headers["retry-after"]) >= 1
    assert "x-ratelimit-limit-tokens" not in unknown.headers


async def test_the_openai_client_gets_the_errors_it_knows(ask: Ask) -> None:
    endpoint = Endpoint(Limits(requests_per_minute=1, max_body_bytes=1000, max_n=2))

    def client(key: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url="http://test/v1", api_key=key, http_client=endpoint.client(), max_retries=0)

    async with client("sk-wrong") as asking:
        with pytest.raises(openai.AuthenticationError) as wrong:
            await asking.models.list()
    assert wrong.value.code == "invalid_api_key"
    async with client("sk-ann") as asking:
        with pytest.raises(openai.BadRequestError) as many:
            await asking.chat.completions.create(**ask(n=3))
        assert many.value.param == "n"
        with pytest.raises(openai.RateLimitError) as limited:
            await asking.chat.completions.create(**ask())
        assert limited.value.code == "rate_limit_exceeded"
        assert limited.value.request_id
    async with client("sk-bob") as asking:
        with pytest.raises(openai.APIStatusError) as large:
            await asking.chat.completions.create(**ask("x" * 1000))
    assert (large.value.status_code, large.value.code) == (413, "request_too_large")


async def test_nobody_without_a_key_has_a_body_read() -> None:
    async with Endpoint().client() as client:
        assert (await client.post(CHAT, content=b"x" * 5_000_000)).status_code == 401


async def test_web_pages_may_ask_only_where_they_are_named(ask: Ask) -> None:
    origin = {"Origin": "https://chat.example.org"}
    preflight = {**origin, "Access-Control-Request-Method": "POST"}
    async with Endpoint().client() as client:
        closed = await client.options(CHAT, headers=preflight)
        answered = await client.post(CHAT, json=ask(), headers={**origin, **ANN})
    assert closed.status_code == 401
    assert not [name for name in (*closed.headers, *answered.headers) if name.startswith("access-control")]
    named = Security(cors_origins=["https://chat.example.org"])
    async with Endpoint(security=named).client() as client:
        opened = await client.options(CHAT, headers=preflight)
        named_headers = "authorization, content-type, x-request-id, x-request-timeout, x-session-id"
        asking = {**preflight, "Access-Control-Request-Headers": named_headers}
        with_headers = await client.options(CHAT, headers=asking)
        other = await client.options(CHAT, headers={**preflight, "Origin": "https://evil.example.org"})
        answered = await client.post(CHAT, json=ask(), headers={**origin, **ANN})
        refused = await client.post(CHAT, json=ask(), headers=origin)
    assert opened.headers["access-control-allow-origin"] == "https://chat.example.org"
    assert with_headers.status_code == 200
    assert "access-control-allow-origin" not in other.headers
    assert answered.headers["access-control-allow-origin"] == "https://chat.example.org"
    assert (answered.status_code, refused.status_code) == (200, 401)


async def test_keys_are_in_no_answer_no_line_and_no_setting(ask: Ask) -> None:
    endpoint = Endpoint()
    async with endpoint.client() as client:
        for headers in (ANN, {"Authorization": "Bearer sk-annnn"}, {"Authorization": "sk-ann"}):
            for request in (client.post(CHAT, json=ask(), headers=headers), client.get("/x", headers=headers)):
                response = await request
                assert "sk-" not in response.text + str(response.headers)
    assert "sk-" not in "".join(endpoint.lines)


async def test_what_is_not_json_names_the_reason_and_nobody_else_notices(ask: Ask) -> None:
    endpoint = Endpoint()
    bodies = [
        b'{"messages": "\xff"}',
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b'{"model": "fake", "model": "fake"}',
        b'{"temperature": NaN}',
        json.dumps(ask(messages=[{"role": "user", "content": "x"}] * 50_000)).encode(),
        json.dumps(ask(logit_bias={str(token): 1 for token in range(100_000)})).encode(),
        b'{"seed": ' + b"9" * 100_000 + b"}",
    ]
    json_headers = {**ANN, "Content-Type": "application/json"}
    async with endpoint.client() as client:
        for body in bodies:
            response = await client.post(CHAT, content=body, headers=json_headers)
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "invalid_json"
            assert len(response.text) < 500
        assert (await client.post(CHAT, json=ask(), headers=ANN)).status_code == 200


async def test_prompts_and_schemas_without_measure_are_a_400(ask: Ask) -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(50):
        schema = {"type": "array", "items": schema}
    bodies = [
        ask("word " * 100_000),
        ask(n=10_000),
        ask(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}),
        ask(stop=["x"] * 1000),
        ask(logit_bias={str(token): 1 for token in range(5000)}),
        ask(messages=[{"role": "user", "content": "x"}] * 9000),
    ]
    endpoint = Endpoint()
    async with endpoint.client(headers=ANN) as client:
        for body in bodies:
            response = await client.post(CHAT, json=body)
            assert response.status_code == 400
            assert response.json()["error"]["param"]
            assert (await client.post(CHAT, json=ask())).status_code == 200
    assert endpoint.engine.num_running == 0
