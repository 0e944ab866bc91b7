"""The config file at the top level through Ray Serve's own command."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.ray


def with_a_file(folder: Path, model: str) -> tuple[list[str], int]:
    """The project's config file with `model` in the demo's place and a free port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"]["model"] = model
    (folder / "serve_config.yaml").write_text(yaml.safe_dump(config))
    return ["serve_config.yaml"], port


def with_a_builder(folder: Path, model: str) -> tuple[list[str], int]:
    """The builder and its arguments; the port is Serve's own."""
    del folder
    return ["ray_apps.serve.app:build_app", f"model={model}"], 8000


Given = Callable[[Path, str], tuple[list[str], int]]


@contextmanager
def serve_run(folder: Path, model: str, given: Given = with_a_file) -> Iterator[tuple[str, Path]]:
    """`serve run` of what is given; the URL and the file of what it prints."""
    arguments, port = given(folder, model)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    command = [str(Path(sys.executable).with_name("serve")), "run", *arguments, "--address", "local"]
    output = folder / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    family = []
    try:
        yield f"http://127.0.0.1:{port}", output
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)
        for other in psutil.wait_procs(family, timeout=10)[1]:
            other.kill()


def wait_for(condition: Callable[[], bool], output: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("given", [with_a_file, with_a_builder])
def test_a_model_is_served(given: Given, tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "artifacts").symlink_to(tiny_model_dir.parent)
    with serve_run(tmp_path, f"artifacts/{tiny_model_dir.name}", given) as (url, output):
        wait_for(lambda: is_healthy(url), output)
        request = {"model": tiny_model_dir.name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        answer = httpx.post(f"{url}/v1/chat/completions", json=request, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] > 0


def test_an_absent_model_is_one_clear_line(tmp_path: Path) -> None:
    with serve_run(tmp_path, "artifacts/demo/model") as (_, output):
        line = "model directory artifacts/demo/model does not exist; run `make demo` or set args.model"
        wait_for(lambda: line in output.read_text(), output)
        assert "Traceback" not in output.read_text()
