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
