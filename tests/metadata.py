"""A metadata server on this machine that answers as one cloud's does, and misbehaves as told."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Metadata:
    """What the server of `cloud` knows: set its fields while it serves.

    `status`: answered to everything, instead. `raw`: bytes sent in place of a whole answer. `silent`: nothing is
    answered. `served_at`: when an interruption was first told, by the clock.
    """

    def __init__(self, cloud: str) -> None:
        self.cloud = cloud
        self.url = ""
        self.action: dict[str, Any] | str | None = None
        self.rebalance: dict[str, Any] | str | None = None
        self.preempted = "FALSE"
        self.events: Any = []
        self.name = "worker-7"
        self.status: int | None = None
        self.raw: bytes | None = None
        self.body: str | None = None
        self.silent = False
        self.tokens: set[str] = set()
        self.num_tokens = 0
        self.asked: list[str] = []
        self.served_at: float | None = None
        self.free = threading.Event()

    def interrupt(self, left_s: float) -> float:
        """Tell from now on that the machine will be taken away; by when, in seconds since 1970."""
        deadline = float(int(time.time() + left_s + 1))
        when = datetime.fromtimestamp(deadline, UTC)
        self.action = {"action": "terminate", "time": f"{when:%Y-%m-%dT%H:%M:%SZ}"}
        self.preempted = "TRUE"
        self.events = [event("Preempt", self.name, when)]
        return deadline

    def answer(self, method: str, path: str, headers: Any) -> tuple[int, str]:
        if self.status is not None:
            return self.status, '{"error": "as told"}'
        if self.body is not None and "token" not in path:
            return 200, self.body
        return {"aws": self._aws, "gcp": self._gcp, "azure": self._azure}[self.cloud](method, path, headers)

    def _aws(self, method: str, path: str, headers: Any) -> tuple[int, str]:
        if (method, path) == ("PUT", "/latest/api/token") and "X-aws-ec2-metadata-token-ttl-seconds" in headers:
            self.num_tokens += 1
            self.tokens.add(f"token-{self.num_tokens}==")
            return 200, f"token-{self.num_tokens}=="
        if headers.get("X-aws-ec2-metadata-token") not in self.tokens:
            return 401, "Unauthorized"
        found = {
            "instance-id": "i-0abc",
            "placement/availability-zone": "us-west-2b",
            "instance-type": "g5.xlarge",
            "spot/instance-action": self._told(self.action),
            "events/recommendations/rebalance": self.rebalance,
        }.get(path.removeprefix("/latest/meta-data/"))
        return (404, "Not Found") if found is None else (200, found if isinstance(found, str) else json.dumps(found))

    def _gcp(self, method: str, path: str, headers: Any) -> tuple[int, str]:
        if headers.get("Metadata-Flavor") != "Google":
            return 403, "Forbidden"
        found = {
            "id": "4711",
            "zone": "projects/12/zones/us-central1-a",
            "machine-type": "projects/12/machineTypes/g2-standard-8",
            "preempted": self._told(self.preempted, "FALSE"),
        }.get(path.removeprefix("/computeMetadata/v1/instance/"))
        return (404, "Not Found") if found is None else (200, found)

    def _azure(self, method: str, path: str, headers: Any) -> tuple[int, str]:
        if headers.get("Metadata") != "true":
            return 400, '{"error": "Bad request"}'
        compute = {"name": self.name, "location": "westeurope", "zone": "2", "vmSize": "Standard_NC24ads_A100_v4"}
        return {
            "/metadata/instance/compute/name?api-version=2021-02-01&format=text": (200, self.name),
            "/metadata/instance/compute?api-version=2021-02-01&format=json": (200, json.dumps(compute)),
            "/metadata/scheduledevents?api-version=2020-07-01": (
                200,
                json.dumps({"DocumentIncarnation": 2, "Events": self._told(self.events, [])}),
            ),
        }.get(path, (404, "Not Found"))

    def _told(self, value: Any, nothing: Any = None) -> Any:
        if value != nothing and self.served_at is None:
            self.served_at = time.time()
        return value


def event(kind: str, machine: str, when: datetime | None, status: str = "Scheduled") -> dict[str, Any]:
    """One of Azure's scheduled events."""
    return {
        "EventId": f"event-{kind}-{machine}",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": [machine],
        "EventStatus": status,
        "NotBefore": format_datetime(when, usegmt=True) if when else "",
        "Description": "",
        "EventSource": "Platform",
    }


@contextmanager
def serving(cloud: str) -> Iterator[Metadata]:
    """The server of `cloud`, on loopback, while the block runs."""
    known = Metadata(cloud)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            known.asked.append(self.path)
            if known.silent:
                known.free.wait(30)
                self.close_connection = True
                return
            if known.raw is not None:
                self.wfile.write(known.raw)
                self.close_connection = True
                return
            status, text = known.answer(self.command, self.path, self.headers)
            body = text.encode()
            self.send_response(status)
            if known.cloud == "gcp":
                self.send_header("Metadata-Flavor", "Google")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if status != 204:
                self.wfile.write(body)

        def do_PUT(self) -> None:
            self.do_GET()

        def log_message(self, *arguments: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        known.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield known
        known.free.set()
        server.shutdown()
        thread.join()
