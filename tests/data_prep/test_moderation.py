"""A moderator flags what it should, is waited for when it is busy, and stops the job when it is gone."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import ModerationSettings
from data_prep.conversation import Conversation, Message, Role
from data_prep.errors import ConfigError, DataError
from data_prep.moderation import NoModerator, OpenAiModerator, PatternModerator, build_moderator


def chat(text: str) -> Conversation:
    return Conversation(text, (Message(Role.USER, "Hm?"), Message(Role.ASSISTANT, text)))


CHATS = [chat(text) for text in ("fine", "BAD thing", "also fine", "worse")]


class Endpoint:
    """OpenAI's moderation API at the wire: flags texts with `bad` or `worse`; `answers` come before its verdicts."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], str]] = []
        self.requests: list[dict[str, Any]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append({"path": self.path, "key": self.headers["Authorization"], **body})
                status, headers, text = (
                    endpoint.answers.pop(0) if endpoint.answers else (200, {}, verdicts(body["input"]))
                )
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


def verdicts(texts: list[str]) -> str:
    found = [re.search("bad|worse", text, re.IGNORECASE) for text in texts]
    return json.dumps(
        {"results": [{"flagged": bool(hit), "categories": {"hate": bool(hit), "x": False}} for hit in found]}
    )


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


def test_off_flags_nothing() -> None:
    moderator = build_moderator(ModerationSettings())
    assert isinstance(moderator, NoModerator)
    assert moderator.flags(CHATS) == [None] * 4


def test_patterns_flag_with_their_category(tmp_path: Path) -> None:
    (tmp_path / "patterns.yaml").write_text("insult: ['\\bbad\\b']\nother: [worse, worst]\n")
    moderator = build_moderator(ModerationSettings(kind="local", patterns=str(tmp_path / "patterns.yaml")))
    assert isinstance(moderator, PatternModerator)
    assert moderator.flags(CHATS) == [None, "insult", None, "other"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "patterns.yaml"),
        ("[]", "expected a mapping of categories"),
        ("insult: bad", "insult: expected a list"),
        ("insult: ['(']", "insult: not a regular expression"),
    ],
)
def test_wrong_patterns_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "patterns.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        build_moderator(ModerationSettings(kind="local", patterns=str(tmp_path / "patterns.yaml")))
    assert "\n" not in str(caught.value)


def test_missing_pieces_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        build_moderator(ModerationSettings(kind="openai"))
    with pytest.raises(ConfigError, match="patterns: is required for kind 'local'"):
        ModerationSettings.parse({"kind": "local"})
    with pytest.raises(ConfigError, match="No such file"):
        build_moderator(ModerationSettings(kind="local", patterns="/nowhere.yaml"))


def test_the_endpoint_is_asked_in_its_own_form(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    moderator = build_moderator(ModerationSettings(kind="openai", base_url=endpoint.url))
    assert moderator.flags(CHATS) == [None, "hate", None, "hate"]
    (request,) = endpoint.requests
    assert request["path"] == "/v1/moderations"
    assert request["key"] == "Bearer secret"
    assert request["model"] == "omni-moderation-latest"
    assert request["input"][1] == "Hm?\nBAD thing"


def test_a_long_chat_is_asked_about_in_pieces(endpoint: Endpoint) -> None:
    moderator = OpenAiModerator(endpoint.url, "m", "k")
    assert moderator.flags([chat("fine " * 10_000 + "bad"), chat("fine")]) == ["hate", None]
    assert max(len(text) for request in endpoint.requests for text in request["input"]) <= 20_000


def test_a_busy_endpoint_is_waited_for(endpoint: Endpoint) -> None:
    endpoint.answers = [(429, {"Retry-After": "0.05"}, ""), (503, {}, "")]
    assert OpenAiModerator(endpoint.url, "m", "k", max_wait_s=0.1).flags(CHATS[1:2]) == ["hate"]
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(401, {}, "")], "does not answer: status 401"),
        ([(500, {}, "")] * 9, "does not answer: status 500"),
        ([(200, {}, '{"results": []}')], "gave no verdict for each of 1 texts"),
        ([(200, {}, "<html>")], "gave no verdict for each of 1 texts"),
    ],
)
def test_an_endpoint_that_gives_no_verdict_stops_the_job(
    endpoint: Endpoint, answers: list[tuple[int, dict[str, str], str]], message: str
) -> None:
    endpoint.answers = answers
    with pytest.raises(DataError, match=message):
        OpenAiModerator(endpoint.url, "m", "k", max_wait_s=0.01).flags(CHATS[:1])
