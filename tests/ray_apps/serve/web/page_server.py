"""The page and the API on a port of their own, in a process of their own: gradio leaves loops and sockets behind.

python -m tests.ray_apps.serve.web.page_server VOTES
"""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from ray_apps.engine.fake import FakeEngine
from ray_apps.serve.api import create_api
from ray_apps.serve.auth import ApiKeys
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.guards import guarded
from ray_apps.serve.policy import Limits, Page, Security
from ray_apps.serve.routing import ServedModel
from ray_apps.votes import VoteFile

ROOT = Path(__file__).parents[4]
ENGINE = "/v1/engine"


class Served:
    """The process, from outside."""

    def __init__(self, process: subprocess.Popen[str], url: str, votes: Path) -> None:
        self.process = process
        self.url = url
        self.votes = VoteFile(votes)

    @property
    def num_running(self) -> int:
        """Answers that are being written."""
        return int(httpx.get(f"{self.url}{ENGINE}").json()["running"])

    @property
    def num_told(self) -> int:
        """Tokens that were answered."""
        return int(httpx.get(f"{self.url}{ENGINE}").json()["told"])


@contextmanager
def page_server(votes: Path) -> Iterator[Served]:
    """The process while the block runs."""
    command = [sys.executable, "-W", "ignore", "-m", __name__, str(votes)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Served(process, process.stdout.readline().strip(), votes)
        finally:
            process.kill()


def main(votes: str) -> None:
    """Serve three models that say what they are told."""
    from ray_apps.serve.web.mounting import WithPage, mount_page

    engine, keys = FakeEngine(pause_s=0.02), ApiKeys()
    backend = EngineBackend(engine, stream_interval_s=0.05)
    models = [ServedModel(name, backend) for name in ("alpaca", "llama", "vicuna")]
    settings = Page(is_shown=True, votes=votes, max_characters=2000)
    api = create_api(models)

    @api.get(ENGINE)
    async def look() -> dict[str, Any]:
        return {"running": engine.num_running, "told": engine.stats().num_generated_tokens}

    app = WithPage(guarded(api, keys, Security(), Limits()), mount_page(models, settings, keys), keys, allow_open=False)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1])
