import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from ray_apps.engine.fake import FakeEngine
from ray_apps.engine.protocol import Engine
from ray_apps.serve.api import create_api
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.routing import ServedModel

Client = Callable[..., httpx.AsyncClient]


def events(response: httpx.Response) -> list[str]:
    """The data of each event of a stream."""
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    *data, done = events(response)
    assert done == "[DONE]"
    return [json.loads(chunk) for chunk in data]


@pytest.fixture
def api_client() -> Client:
    """A client of the API on a fake engine, without a server."""

    def make(engine: Engine | None = None, model: str = "fake", **names: tuple[str, ...]) -> httpx.AsyncClient:
        api = create_api([ServedModel(model, EngineBackend(engine or FakeEngine()), **names)])
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    return make


@pytest.fixture
def ask() -> Callable[..., dict[str, Any]]:
    """The body of a request whose last message is `text`."""

    def body(text: str = "hello", **fields: Any) -> dict[str, Any]:
        return {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}

    return body
