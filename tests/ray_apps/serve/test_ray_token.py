"""Ray's own ports beside the endpoint. Who may use them can run any code, so Ray's token guards them."""

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
import yaml
from ray.serve.generated.serve_pb2 import ASGIRequest

from tests.ray_apps.serve.endpoint import wait_until

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[3]
COMMANDS = {
    "vicuna serve": ["-m", "ray_apps.cli", "serve", "serve_config.yaml"],
    "serve run": [str(Path(sys.executable).with_name("serve")), "run", "serve_config.yaml", "--address", "local"],
}


class Code:
    """Once unpickled, there is a folder at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def user_without_token(home: Path) -> dict[str, str]:
    """The environment of somebody who has never heard of Ray's tokens."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    return {**environment, "HOME": str(home), "PYTHONPATH": str(ROOT)}


def write_config(folder: Path) -> str:
    """A file that serves an echo; the value is its URL."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config["http_options"]["port"] = listener.getsockname()[1]
    config["applications"][0]["args"] = {"engine": "fake", "model_name": "fake"}
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(config))
    return f"http://127.0.0.1:{config['http_options']['port']}"


@pytest.fixture(params=COMMANDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[psutil.Process]:
    """A running endpoint, as a user starts it whose home is `tmp_path`."""
    url, output = write_config(tmp_path), tmp_path / "output.txt"
    with output.open("w") as file:
        process = psutil.Popen(
            [sys.executable, *COMMANDS[request.param]],
            cwd=tmp_path,
            env=user_without_token(tmp_path),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait_until(lambda: is_healthy(url) or process.poll() is not None, 120)
        assert process.poll() is None, output.read_text()
        yield process
    finally:
        family = process.children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)
        for other in family:
            with suppress(psutil.NoSuchProcess):
                other.kill()


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


def ports(server: psutil.Process, name: str, *hosts: str) -> list[int]:
    """Those of `hosts` that the processes of `server` listen on whose command line has `name` in it."""
    family = [process for process in server.children(recursive=True) if name in " ".join(process.cmdline())]
    sockets = [one for process in family for one in process.net_connections("tcp")]
    return [one.laddr.port for one in sockets if one.status == psutil.CONN_LISTEN and one.laddr.ip in hosts]


def call(port: int, code: Code, **headers: str) -> grpc.StatusCode:
    """What a replica answers to a request, if its gRPC port this is, that is `code` once it is unpickled."""
    request = ASGIRequest(pickled_request_metadata=pickle.dumps(code)).SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
        with pytest.raises(grpc.RpcError) as raised:
            method(request, timeout=30, metadata=tuple(headers.items()))
    return raised.value.code()


def test_rays_ports_run_nobodys_code_without_the_token(server: psutil.Process, tmp_path: Path) -> None:
    replicas, ran = ports(server, "ServeReplica", "::", "0.0.0.0"), tmp_path / "ran"
    for headers in ({}, {"authorization": "Bearer wrong"}):
        codes = [call(port, Code(ran), **headers) for port in replicas]
        assert codes.count(grpc.StatusCode.UNAUTHENTICATED) == 2  # the ingress and the model
        assert not ran.exists()
    # These were the right doors: they open to who has the token.
    token = f"Bearer {(tmp_path / '.ray' / 'auth_token').read_text()}"
    for port in replicas:
        call(port, Code(ran), authorization=token)
    assert ran.is_dir()

    (dashboard,) = ports(server, "dashboard.py", "127.0.0.1")
    applications = f"http://127.0.0.1:{dashboard}/api/serve/applications/"
    assert httpx.get(applications).status_code == 401
    assert httpx.get(applications, headers={"authorization": token}).status_code == 200


def test_a_cluster_is_joined_with_its_token_or_not_at_all(tmp_path: Path) -> None:
    write_config(tmp_path)
    environment = {**user_without_token(tmp_path), "RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, *COMMANDS["vicuna serve"]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: RAY_ADDRESS: there is no token for the cluster at 127.0.0.1:1; ")
