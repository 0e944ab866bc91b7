import json
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from data_prep.errors import ConfigError
from ray_apps.serve.record import current_request
from ray_apps.serve.request_log import Journal, RequestLog, open_log


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    record = current_request()
    record.model, record.num_prompt_tokens, record.finish_reasons = "m", 3, ["stop"]
    record.messages, record.answers = "a secret question", ["a secret answer"]
    if scope["path"] == "/broken":
        raise RuntimeError
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": record.request_id.encode()})


def client(lines: list[str], *, with_texts: bool = False, names_requests: bool = True) -> httpx.AsyncClient:
    log = RequestLog(app, Journal(lines.append, with_texts=with_texts), names_requests=names_requests)
    return httpx.AsyncClient(transport=httpx.ASGITransport(log, raise_app_exceptions=False), base_url="http://test")


async def test_a_request_is_one_line_without_its_texts() -> None:
    lines: list[str] = []
    async with client(lines) as asking:
        await asking.post("/v1/x?key=secret", content=b"secret", headers={"Authorization": "Bearer secret"})
    (line,) = lines
    told = json.loads(line)
    assert (told["method"], told["path"], told["status"], told["model"]) == ("POST", "/v1/x", 201, "m")
    assert (told["prompt_tokens"], told["finish_reasons"], told["key"]) == (3, ["stop"], "anybody")
    assert told["duration_s"] >= 0
    assert "secret" not in line
    assert line.isascii()
    assert "\n" not in line


async def test_texts_are_written_where_they_are_asked_for() -> None:
    lines: list[str] = []
    async with client(lines, with_texts=True) as asking:
        await asking.post("/")
    assert json.loads(lines[0])["messages"] == "a secret question"
    assert json.loads(lines[0])["answers"] == ["a secret answer"]


async def test_a_request_has_one_name_in_the_answer_and_in_the_log() -> None:
    lines: list[str] = []
    async with client(lines) as asking:
        given = await asking.get("/", headers={"X-Request-Id": "mine-1"})
        own = await asking.get("/")
        odd = await asking.get("/", headers=[(b"x-request-id", b"\xff" * 10)])
        long = await asking.get("/", headers={"X-Request-Id": "x" * 1000})
    names = [json.loads(line)["request_id"] for line in lines]
    assert [response.headers["x-request-id"] for response in (given, own, odd, long)] == names
    assert names[0] == "mine-1"
    assert all(len(name) == 32 for name in names[1:])
    async with client(lines, names_requests=False) as asking:
        assert "x-request-id" not in (await asking.get("/")).headers


async def test_what_a_client_sends_cannot_forge_a_line() -> None:
    lines: list[str] = []
    async with client(lines) as asking:
        await asking.get("/%0a%7b%22status%22:200%7d" + "x" * 5000)
        assert (await asking.get("/broken")).status_code == 500
        await asking.get("/health")
    assert [json.loads(line)["status"] for line in lines] == [201, None]
    assert len(lines[0]) < 1000


async def test_a_look_at_health_leaves_no_line_and_whatever_resembles_it_does() -> None:
    lines: list[str] = []
    async with client(lines) as asking:
        await asking.head("/health")
        await asking.get("/health")
        await asking.post("/health")
        await asking.get("/v1/health")
    assert [(told["method"], told["path"]) for told in map(json.loads, lines)] == [
        ("POST", "/health"),
        ("GET", "/v1/health"),
    ]


def test_lines_are_appended_to_a_file(tmp_path: Path) -> None:
    target = tmp_path / "requests.jsonl"
    for text in ("one", "two"):
        open_log(str(target))(text)
    assert target.read_text() == "one\ntwo\n"
    with pytest.raises(ConfigError, match=r"args\.logging\.requests: cannot write to .*: No such file"):
        open_log(str(tmp_path / "none" / "x"))


def test_stderr_is_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    open_log("stderr")("{}")
    assert capsys.readouterr().err == "{}\n"
