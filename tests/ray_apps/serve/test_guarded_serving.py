"""The whole endpoint against people who mean no good: keys, limits, slow clients, and what is measured meanwhile."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import ray
from starlette.middleware import Middleware

from ray_apps.serve.auth import KEYS_VARIABLE
from ray_apps.serve.config_file import load_serve_file
from ray_apps.serve.connection import CALLBACK_VARIABLE, Connection
from ray_apps.serve.metrics import ENGINE_METRICS, REQUEST_METRICS
from ray_apps.serve.run import serving
from tests.ray_apps.serve.endpoint import serve_environment

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[3]
KEY = "sk-test-0123456789"
CHAT = "/v1/chat/completions"
LIMITS = {"max_body_bytes": 8_000_000, "body_timeout_s": 3}


def impatient() -> list[Middleware]:
    """What stands in the proxy, without the patience that it has for clients that read nothing."""
    return [Middleware(Connection, stall_s=2)]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "requests.jsonl"


@pytest.fixture(scope="module")
def url(log: Path) -> Iterator[str]:
    """An endpoint that anybody with the key may ask."""
    variables = {
        KEYS_VARIABLE: f"ann: {KEY}",
        "RAY_metrics_report_interval_ms": "1000",
        CALLBACK_VARIABLE: f"{impatient.__module__}:{impatient.__name__}",
    }
    fields = {
        "engine": "fake",
        "model_name": "fake",
        "max_model_len": 8_000_000,
        "max_ongoing_requests": 4,
        "limits": json.dumps(LIMITS),
        "logging.requests": str(log),
    }
    overrides = ["http_options.port=0", *(f"args.{name}={value}" for name, value in fields.items())]
    file = load_serve_file(ROOT / "serve_config.yaml", overrides)
    with serve_environment(**variables), serving(file) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60) as asking:
        yield asking


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}


def is_answered(client: openai.OpenAI) -> bool:
    return client.chat.completions.create(**ask("still here")).choices[0].message.content == "still here"


@contextmanager
def connections(url: str, count: int, opening: bytes, **options: int) -> Iterator[list[socket.socket]]:
    """`count` connections that send `opening` and then nothing."""
    host, port = url.removeprefix("http://").split(":")
    sockets = []
    try:
        for _ in range(count):
            sockets.append(socket.socket())
            for name, value in options.items():
                sockets[-1].setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
            sockets[-1].connect((host, int(port)))
            sockets[-1].sendall(opening)
        yield sockets
    finally:
        for one in sockets:
            one.close()


def opening(body: bytes, length: int, path: str = CHAT, key: str = KEY) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: test",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def memory_of_serve() -> int:
    """Bytes that the processes of Serve hold."""
    held = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # zombies too
            title = " ".join(process.cmdline())
            if "ProxyActor" in title or "ServeReplica" in title:
                held += process.memory_info().rss
    assert held
    return held


def scraped() -> str:
    """What Prometheus is told."""
    port = ray.nodes()[0]["MetricsExportPort"]
    return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text


def num_waiting() -> list[float]:
    """Of the ingress and of the replica, in any order."""
    values = re.findall(r"^ray_vllm_num_requests_waiting\{.*\} (\S+)$", scraped(), re.MULTILINE)
    return sorted(map(float, values))


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_what_the_limits_allow_gets_there_and_back(url: str, client: openai.OpenAI) -> None:
    text = "long " * 1_200_000
    told = client.chat.completions.create(**ask(text, max_tokens=9)).choices[0].message.content
    assert told == "long long"
    body, headers = {"model": "fake", "prompt": text[:3_000_000]}, {"Authorization": f"Bearer {KEY}"}
    tokens = httpx.post(f"{url}/tokenize", json=body, headers=headers, timeout=60).json()
    assert (tokens["count"], len(tokens["tokens"])) == (3_000_000, 3_000_000)


def test_no_path_is_open_without_a_key(url: str) -> None:
    with httpx.Client(base_url=url) as asking:
        assert asking.get("/health").status_code == 200
        assert asking.get("/-/healthz").text == "success"
        for path in ("/v1/models", "/openapi.json", "/metrics", "/docs", "/health/", "/-/routes", "/unknown"):
            for headers in ({}, {"Authorization": f"Bearer {KEY}0"}):
                response = asking.get(path, headers=headers)
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
        assert asking.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_a_key_is_shown_nowhere(url: str, client: openai.OpenAI, log: Path) -> None:
    assert is_answered(client)
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path())  # type: ignore[attr-defined]
    logs = [path for path in (session / "logs").rglob("*") if path.is_file()]
    assert len(logs) > 5
    for path in [*logs, log]:
        assert KEY.encode() not in path.read_bytes(), path
    dashboard = ray._private.worker.global_worker.node.webui_url  # type: ignore[attr-defined]
    shown = httpx.get(f"http://{dashboard}/api/serve/applications/", timeout=30)
    assert shown.is_success
    assert "fake" in shown.text
    assert KEY not in shown.text


def test_a_request_has_one_name_everywhere(client: openai.OpenAI, log: Path) -> None:
    named = client.chat.completions.with_raw_response.create(**ask("hello"), extra_headers={"X-Request-Id": "mine-7"})
    assert named.headers["x-request-id"] == "mine-7"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (line,) = [line for line in lines if line["request_id"] == "mine-7"]
    assert (line["key"], line["model"], line["completion_tokens"]) == ("ann", "fake", 6)
    assert "hello" not in json.dumps(line)


def test_large_and_half_open_bodies_are_refused_while_others_are_answered(url: str, client: openai.OpenAI) -> None:
    before = memory_of_serve()
    large = b'{"messages": "' + b"x" * 10_000_000 + b'"}'
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    half = opening(b'{"model"', 1000)
    with connections(url, 100, half) as waiting, connections(url, 100, b"POST /v1/chat HTTP/1.1\r\nHost"):
        assert is_answered(client)
        for _ in range(5):
            response = httpx.post(f"{url}{CHAT}", content=large, headers=headers, timeout=30)
            assert response.status_code == 413
            chunked = httpx.post(f"{url}{CHAT}", content=iter([large]), headers=headers, timeout=30)
            assert chunked.status_code == 413
        assert is_answered(client)
        waiting[0].settimeout(30)
        assert b" 408 " in waiting[0].recv(1000)
    assert is_answered(client)
    assert memory_of_serve() - before < 300_000_000


def test_hundreds_of_connections_whose_headers_never_end_keep_nobody_waiting(url: str, client: openai.OpenAI) -> None:
    assert is_answered(client)
    before = memory_of_serve()
    half = f"POST {CHAT} HTTP/1.1\r\nHost: test\r\nX-Slow: ".encode()
    with connections(url, 200, b""), connections(url, 400, half) as slow:
        for _ in range(10):
            for one in slow:
                one.sendall(b"x")
            assert is_answered(client)
        assert memory_of_serve() - before < 50_000_000
    assert is_answered(client)


def test_a_client_that_reads_nothing_is_given_up_and_its_answer_ends(
    url: str, client: openai.OpenAI, log: Path
) -> None:
    # The sockets of this machine take some 3 MB before a client's silence shows.
    body = json.dumps(ask("x" * 500_000, stream=True, logprobs=True, top_logprobs=1)).encode()
    aborted = log.read_text().count('"abort"')
    with connections(url, 1, opening(body, len(body)), SO_RCVBUF=4096):
        before = memory_of_serve()
        assert is_answered(client)
        wait_until(lambda: log.read_text().count('"abort"') == aborted + 1, 60)
        assert memory_of_serve() - before < 300_000_000
    assert is_answered(client)


def test_headers_that_serve_obeys_are_not_a_clients_to_set(url: str, client: openai.OpenAI, log: Path) -> None:
    raw = opening(b"", 0).replace(b"Host: test", b"Host: test\r\nX-Session-Id: \xff\r\nX-Request-Id: \xff")
    with connections(url, 1, raw) as (one,):
        one.settimeout(30)
        assert b" 400 " in one.recv(1000)
    aborted = log.read_text().count('"abort"')
    body = json.dumps(ask("x" * 500_000)).encode()
    held = opening(body, len(body)).replace(b"Host: test", b"Host: test\r\nX-Request-Disconnect-Disabled: ?1")
    with connections(url, 1, held):
        time.sleep(1)
    wait_until(lambda: log.read_text().count('"abort"') == aborted + 1)
    assert is_answered(client)


def test_everything_is_measured_where_prometheus_and_the_dashboard_look_for_it(client: openai.OpenAI) -> None:
    for _ in range(2):
        list(client.chat.completions.create(**ask("hello"), stream=True))
    dashboard = (ROOT / "docs/grafana.json").read_text()
    wanted = {name for metric in REQUEST_METRICS + ENGINE_METRICS for name in metric.exported_names}
    # An echo has no cache, so nothing is ever found in it.
    wanted = wanted - {"ray_vllm_prefix_cache_hits_total"} | set(re.findall(r"ray_serve_\w+", dashboard))

    def missing() -> set[str]:
        return wanted - set(re.findall(r"^(\w+)", scraped(), re.MULTILINE))

    wait_until(lambda: not missing(), 60)
    (line,) = re.findall(r'^ray_vllm_generation_tokens_total\{[^\n]*model_name="fake"[^\n]*$', scraped(), re.MULTILINE)
    assert float(line.rpartition(" ")[2]) >= 12
    assert 'replica="' in line


def test_those_who_wait_for_a_replica_are_counted_beside_those_who_wait_in_one(url: str, client: openai.OpenAI) -> None:
    body = json.dumps(ask("x" * 500_000)).encode()
    with connections(url, 4 + 3, opening(body, len(body))):
        wait_until(lambda: num_waiting() == [0, 3], 60)
    wait_until(lambda: num_waiting() == [0, 0], 60)
    assert is_answered(client)
