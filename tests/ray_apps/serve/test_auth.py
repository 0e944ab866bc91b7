import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from data_prep.errors import ConfigError
from ray_apps.serve.auth import KEYS_VARIABLE, ApiKeys, Authentication, is_loopback, load_keys
from ray_apps.serve.record import RequestRecord, begin, current_request

KEYS = {KEYS_VARIABLE: "ann: sk-ann-0123456789, sk-second-0123456789"}
ANN = {"Authorization": "Bearer sk-ann-0123456789"}


async def open_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers whatever reaches it, with the name of the key."""
    body = current_request().key_name.encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def client(keys: ApiKeys, *, peer: str = "127.0.0.1", allow_open: bool = False) -> httpx.AsyncClient:
    guard = Authentication(open_app, keys, allow_open=allow_open)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begin(RequestRecord())
        await guard(scope, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(peer, 1)), base_url="http://test")


async def test_a_key_opens_and_is_known_by_its_name() -> None:
    async with client(load_keys(None, KEYS)) as asking:
        assert (await asking.get("/v1/models", headers=ANN)).text == "ann"
        second = {"authorization": "bearer  sk-second-0123456789"}
        assert (await asking.get("/v1/models", headers=second)).text == "key-2"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", "Bearer sk-ann-012345678")],
        [("Authorization", "Bearer sk-ann-01234567890")],
        [("Authorization", "Bearer sk-ann-0123456789 sk-ann-0123456789")],
        [("Authorization", "Bearer SK-ANN-0123456789")],
        [("Authorization", "Basic sk-ann-0123456789")],
        [("Authorization", "sk-ann-0123456789")],
        [("Authorization", "Bearer ann: sk-ann-0123456789")],
        [("Authorization", "Bearer sk-ann-0123456789"), ("Authorization", "Bearer wrong")],
        [("Authorization", "Bearer wrong"), ("Authorization", "Bearer sk-ann-0123456789")],
        [("Proxy-Authorization", "Bearer sk-ann-0123456789")],
        [("X-Api-Key", "sk-ann-0123456789")],
        [("Cookie", "Authorization=Bearer sk-ann-0123456789")],
    ],
)
async def test_anything_but_one_right_key_is_a_401_in_openais_shape(headers: list[tuple[str, str]]) -> None:
    async with client(load_keys(None, KEYS)) as asking:
        response = await asking.post("/v1/chat/completions", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert "sk-" not in response.text


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/chat/completions",
        "/v1/models",
        "/openapi.json",
        "/docs",
        "/metrics",
        "/unknown",
        "/health/",
        "//health",
        "/health/../v1/models",
        "/%2e%2e/health",
        "/HEALTH",
        "/v1/health",
        "/health%00",
        "/health;/v1/models",
        "/health%2f..%2fv1/models",
    ],
)
async def test_nothing_but_health_is_open(method: str, path: str) -> None:
    async with client(load_keys(None, KEYS)) as asking:
        url = httpx.URL("http://test").copy_with(raw_path=path.encode())
        assert (await asking.request(method, url)).status_code == 401


async def test_health_is_open_to_be_read_only() -> None:
    async with client(load_keys(None, KEYS), peer="203.0.113.9") as asking:
        assert (await asking.get("/health")).status_code == 200
        assert (await asking.head("/health?x=1")).status_code == 200
        assert (await asking.post("/health")).status_code == 401


@pytest.mark.parametrize("keys", [ApiKeys(), load_keys(None, KEYS)])
async def test_a_websocket_is_refused(keys: ApiKeys) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/health", "headers": [(b"authorization", b"Bearer sk-ann-0123456789")]}
    await Authentication(open_app, keys, allow_open=True)(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


@given(path=st.text(max_size=20), root=st.sampled_from(["", "/chat"]), method=st.sampled_from(["GET", "HEAD", "POST"]))
async def test_only_the_path_of_the_health_check_needs_no_key(path: str, root: str, method: str) -> None:
    reached: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(True)

    async def ignore(message: Message) -> None:
        return

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope: Any = {"type": "http", "path": path, "root_path": root, "method": method, "headers": []}
    await Authentication(app, load_keys(None, KEYS))(scope, receive, ignore)
    assert not reached or (path == f"{root}/health" and method != "POST")


@pytest.mark.parametrize(
    ("peer", "allow_open", "status"),
    [
        ("127.0.0.1", False, 200),
        ("::1", False, 200),
        ("::ffff:127.0.0.1", False, 200),
        ("203.0.113.9", False, 401),
        ("", False, 401),
        ("203.0.113.9", True, 200),
    ],
)
async def test_without_keys_only_this_machine_may_ask_unless_it_is_said_otherwise(
    peer: str, allow_open: bool, status: int
) -> None:
    async with client(ApiKeys(), peer=peer, allow_open=allow_open) as asking:
        assert (await asking.get("/v1/models")).status_code == status


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("localhost", True), ("127.0.0.5", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("example", False)],
)
def test_loopback_hosts_are_told_from_others(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\nsk-of-the-file-1\n bob : sk-of-the-file-2 \r\n")
    keys = load_keys(str(file), KEYS)
    assert [name for name, _ in keys.digests] == ["ann", "key-2", "key-3", "bob"]
    assert keys.name_of(b"sk-of-the-file-2") == "bob"
    assert keys.name_of(b"sk-of-the-file-3") is None
    assert not load_keys(None, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"holds no key"),
        ("# none yet\n", r"holds no key"),
        ("fine\nname:\n", r"entry 2 is no key"),
        ("two words", r"entry 1 is no key"),
        ("ключ", r"entry 1 is no key"),
        ("a: sk-same\nb: sk-same", r"a key is there twice"),
        ("a: sk-one\na: sk-two", r"a name is there twice"),
    ],
)
def test_a_file_that_would_leave_the_door_open_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as wrong:
        load_keys(str(file), {})
    assert "sk-" not in str(wrong.value)
    with pytest.raises(ConfigError, match=message):
        load_keys(None, {KEYS_VARIABLE: text})


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"api_keys_file: cannot read .*/none: No such file"):
        load_keys(str(tmp_path / "none"), {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        load_keys(str(tmp_path / "binary"), {})


async def test_keys_are_never_printed(caplog: pytest.LogCaptureFixture) -> None:
    keys = load_keys(None, KEYS)
    with caplog.at_level(logging.DEBUG):
        async with client(keys) as asking:
            await asking.get("/v1/models", headers=ANN)
            await asking.get("/v1/models", headers={"Authorization": "Bearer sk-wrong"})
    assert "sk-" not in caplog.text + repr(keys) + str(keys) + repr(keys.digests)
