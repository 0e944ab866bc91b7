"""The page through Ray Serve, beside the API, with a small real model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from ray_apps.serve.auth import KEYS_VARIABLE
from ray_apps.serve.config_file import load_serve_file
from ray_apps.serve.run import serving
from ray_apps.votes import VoteFile
from tests.browser import Browser, browser
from tests.ray_apps.serve.endpoint import serve_environment

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@contextmanager
def served(
    tmp_path: Path, models: list[dict[str, Any]], requests_per_minute: int | None = None, **variables: str
) -> Iterator[str]:
    votes = tmp_path / "votes.jsonl"
    args = {
        "models": models,
        "page": {"is_shown": True, "votes": str(votes)},
        "limits": {"requests_per_minute": requests_per_minute},
        "logging": {"requests": str(tmp_path / "requests.jsonl")},
    }
    application = {"name": "chat", "import_path": "ray_apps.serve.app:build_app", "args": args}
    path = tmp_path / "serve.yaml"
    path.write_text(json.dumps({"http_options": {"port": 0}, "applications": [application]}))
    with serve_environment(**variables), serving(load_serve_file(path, [])) as url:
        yield url


def say(page: Browser, mode: str, text: str) -> None:
    page.find(f"#{mode}-field textarea").send_keys(text + Keys.ENTER)


def test_a_real_model_answers_on_a_phone(tiny_model_dir: Path, tmp_path: Path) -> None:
    models = [
        {"model": str(tiny_model_dir), "model_name": "tiny", "engine": "native", "device": "cpu", "num_threads": 1},
        {"engine": "fake", "model_name": "echo"},
    ]
    with served(tmp_path, models) as url, browser(390, 800) as phone:
        assert {model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]} == {"tiny", "echo"}
        phone.open(url)
        say(phone, "chat", "hi")
        phone.wait_for("First token after", "#chat-note", seconds=200)
        assert phone.text("#chat-0 .bot").strip()
        phone.button("Side by side").click()
        say(phone, "side_by_side", "hello both")
        phone.wait_for("tokens/s. B: First token after", "#side_by_side-note", seconds=200)
        assert "hello both" in phone.text("#side_by_side-1 .bot")
        phone.run("arguments[0].click()", phone.button("B is better ▶"))  # wherever it has moved to
        phone.wait_for("Thank you.", "#side_by_side-note")
        (vote,) = VoteFile(tmp_path / "votes.jsonl").read()
        assert (vote.models, vote.verdict) == (("tiny", "echo"), "b")
        assert phone.run("return document.documentElement.scrollWidth <= window.innerWidth")


def test_who_has_no_key_does_not_come_in(tmp_path: Path) -> None:
    models = [{"engine": "fake", "model_name": "echo"}]
    with served(tmp_path, models, 2, **{KEYS_VARIABLE: "team: sk-test"}) as url, browser() as window:
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.post(f"{url}/gradio_api/queue/join", json={}).status_code == 401
        window.open(url)
        for key, said in (("wrong", "Incorrect"), ("sk-test", "Say something")):
            window.find("input[type='text'], textarea").clear()
            window.find("input[type='text'], textarea").send_keys("ann")
            window.find("input[type='password']").clear()
            window.find("input[type='password']").send_keys(key)
            window.button("Login").click()
            if key == "wrong":
                window.wait_for(said)
        say(window, "chat", "hello")
        window.wait_for("First token after", "#chat-note")
        headers = httpx.post(
            f"{url}/v1/chat/completions",
            json={"model": "echo", "messages": [{"role": "user", "content": "hi"}]},
            headers={"Authorization": "Bearer sk-test"},
        ).headers
        assert headers["x-ratelimit-remaining-requests"] == "0"  # one was the page's
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    told = [(line["key"], line["status"], line["finish_reasons"]) for line in lines if line["path"] == "page"]
    assert told == [("team", 200, ["stop"])]
