"""A guard model that is served beside the model that it guards, and a moderator of this machine, through Ray Serve."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_apps.serve.config_file import load_serve_file
from ray_apps.serve.run import serving
from tests.ray_apps.serve.endpoint import serve_environment

pytestmark = pytest.mark.ray


@contextmanager
def served(tmp_path: Path, moderation: dict[str, Any]) -> Iterator[httpx.Client]:
    """Two models that say what they are told, one of which may judge the other's words."""
    models = [{"engine": "fake", "model_name": name} for name in ("chat", "guard")]
    args = {"models": models, "moderation": moderation}
    application = {"name": "chat", "import_path": "ray_apps.serve.app:build_app", "args": args}
    path = tmp_path / "serve.yaml"
    path.write_text(json.dumps({"http_options": {"port": 0}, "applications": [application]}))
    with serve_environment(), serving(load_serve_file(path, [])) as url, httpx.Client(base_url=url) as client:
        yield client


def say(client: httpx.Client, text: str) -> httpx.Response:
    messages = [{"role": "user", "content": text}]
    return client.post("/v1/chat/completions", json={"model": "chat", "messages": messages}, timeout=60)


def test_a_guard_model_judges_its_neighbour(tmp_path: Path) -> None:
    """A guard that repeats what it is shown finds `safe` safe, and has no verdict on most texts."""
    with served(tmp_path, {"kind": "llm", "model": "guard"}) as client:
        assert say(client, "safe").json()["choices"][0]["message"]["content"] == "safe"
        refused = say(client, "unsafe S10")
        assert refused.status_code == 400
        assert refused.json()["error"]["message"] == "The request was refused by moderation: hate."
        assert say(client, "hello").json()["error"]["code"] == "moderation_unavailable"
        judged = client.post("/v1/moderations", json={"input": "unsafe S4"}).json()["results"][0]
        assert judged["categories"]["sexual/minors"]
