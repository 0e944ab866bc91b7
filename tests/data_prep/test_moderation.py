"""A moderator flags what it should, is waited for when it is busy, and stops the job when it is gone."""

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data_prep import moderation
from data_prep.config import ModerationSettings
from data_prep.conversation import Conversation, Message, Role
from data_prep.errors import ConfigError, DataError
from data_prep.moderation import (
    Judgement,
    NoModerator,
    OpenAiModerator,
    PatternModerator,
    ToxicityModerator,
    build_moderator,
    flag_chats,
)


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
    assert flag_chats(moderator, CHATS) == [None] * 4


def test_patterns_flag_with_their_category(tmp_path: Path) -> None:
    (tmp_path / "patterns.yaml").write_text("insult: ['\\bbad\\b']\nother: [worse, worst]\n")
    moderator = build_moderator(ModerationSettings(kind="local", patterns=str(tmp_path / "patterns.yaml")))
    assert isinstance(moderator, PatternModerator)
    assert flag_chats(moderator, CHATS) == [None, "insult", None, "other"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "patterns.yaml"),
        ("[]", "expected a mapping of categories"),
        ("insult: bad", "insult: expected a list"),
        ("insult: ['x*']", "'x*' matches the empty text, and so every text"),
        ("insult: ['(']", "insult: '(' is not a regular expression"),
    ],
)
def test_wrong_patterns_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "patterns.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        build_moderator(ModerationSettings(kind="local", patterns=str(tmp_path / "patterns.yaml")))
    assert "\n" not in str(caught.value)


def test_missing_pieces_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        build_moderator(ModerationSettings(kind="openai"))
    monkeypatch.setattr(moderation, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'local' needs data.moderation.patterns, or the package"):
        build_moderator(ModerationSettings(kind="local"))
    with pytest.raises(ConfigError, match="No such file"):
        build_moderator(ModerationSettings(kind="local", patterns="/nowhere.yaml"))


def test_the_endpoint_is_asked_in_its_own_form(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    moderator = build_moderator(ModerationSettings(kind="openai", base_url=endpoint.url))
    assert flag_chats(moderator, CHATS) == [None, "hate", None, "hate"]
    (request,) = endpoint.requests
    assert request["path"] == "/v1/moderations"
    assert request["key"] == "Bearer secret"
    assert request["model"] == "omni-moderation-latest"
    assert request["input"][1] == "Hm?\nBAD thing"


def test_a_long_chat_is_asked_about_in_pieces(endpoint: Endpoint) -> None:
    moderator = OpenAiModerator(endpoint.url, "m", "k")
    assert flag_chats(moderator, [chat("fine " * 10_000 + "bad"), chat("fine")]) == ["hate", None]
    assert max(len(text) for request in endpoint.requests for text in request["input"]) <= 20_000


def test_a_busy_endpoint_is_waited_for(endpoint: Endpoint) -> None:
    endpoint.answers = [(429, {"Retry-After": "0.05"}, ""), (503, {}, "")]
    assert flag_chats(OpenAiModerator(endpoint.url, "m", "k", max_wait_s=0.1), CHATS[1:2]) == ["hate"]
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
        flag_chats(OpenAiModerator(endpoint.url, "m", "k", max_wait_s=0.01), CHATS[:1])


def test_a_model_that_comes_with_a_package(tmp_path: Path) -> None:
    moderator = build_moderator(ModerationSettings(kind="local"))
    assert isinstance(moderator, ToxicityModerator)
    texts = ["You are a stupid idiot", "How do I kill a process in Linux?", "", "fine words here. " * 200 + "you idiot"]
    judged = moderator.judge(texts)
    assert [set(one.flagged) for one in judged] == [{"harassment"}, set(), set(), {"harassment"}]
    assert all(0 <= one.scores["harassment"] <= 1 for one in judged)
    assert moderator.judge([]) == []


def test_thresholds_take_the_place_of_the_moderator_s_measure() -> None:
    judgement = Judgement({"hate": 0.4, "violence": 0.9}, frozenset({"violence", "other"}))
    assert judgement.with_thresholds({}) == {"violence", "other"}
    assert judgement.with_thresholds({"hate": 0.3, "violence": 0.95}) == {"hate", "other"}


def test_scores_are_told(endpoint: Endpoint) -> None:
    body = {"results": [{"flagged": False, "categories": {"hate": False}, "category_scores": {"hate": 0.25}}]}
    endpoint.answers = [(200, {}, json.dumps(body))]
    assert OpenAiModerator(endpoint.url, "m", "k").judge(["text"]) == [Judgement({"hate": 0.25})]


@pytest.mark.parametrize(
    "result",
    [{"flagged": "false"}, {"flagged": None}, {"flagged": False, "category_scores": {"hate": float("nan")}}, {}],
)
def test_nonsense_is_no_verdict(endpoint: Endpoint, result: dict[str, Any]) -> None:
    endpoint.answers = [(200, {}, json.dumps({"results": [result]}))]
    with pytest.raises(DataError, match="gave no verdict"):
        OpenAiModerator(endpoint.url, "m", "k").judge(["x"])


def test_a_chat_counts_by_its_threshold() -> None:
    class Unsure:
        assessed = ("hate",)

        def judge(self, texts: list[str]) -> list[Judgement]:
            return [Judgement({"hate": 0.7}, frozenset({"hate"})) for _ in texts]

    def flags(**settings: Any) -> list[str | None]:
        return flag_chats(Unsure(), CHATS[:1], ModerationSettings(**settings))  # type: ignore[arg-type]

    assert flags() == ["hate"]
    assert flags(thresholds={"hate": 0.9}) == [None]
    assert flags(thresholds={"hate": 0.6}) == ["hate"]
    assert flags(allowed=["hate"]) == [None]


def test_each_pattern_stands_by_itself() -> None:
    moderator = PatternModerator({"x": [r"(bad)\1", r"(?i)(x)\1"]})
    assert [bool(one.flagged) for one in moderator.judge(["badbad", "XX", "badx", "bad"])] == [True, True, False, False]


def test_a_pattern_that_takes_for_ever_is_given_up() -> None:
    with pytest.raises(moderation.ModerationError, match=r"takes longer than 0\.1 s on a text"):
        PatternModerator({"x": [r"(a|aa|a?)+$"]}, timeout_s=0.1).judge(["a" * 40 + "b"])


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://x", "http://[::1"])
def test_an_address_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with pytest.raises(ConfigError, match=r"data\.moderation\.base_url: .* is not valid"):
        build_moderator(ModerationSettings(kind="openai", base_url=url))
