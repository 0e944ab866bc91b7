"""An endpoint behind a real socket, and programs that nobody here wrote as processes that ask it.

What the programs are pinned to is in `clients.txt`; `make test` installs them in `.clients`.
"""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from transformers import AutoTokenizer

from ray_apps.engine.build import build_engine
from ray_apps.engine.options import EngineOptions
from ray_apps.serve.api import create_api
from ray_apps.serve.auth import KEYS_VARIABLE, load_keys
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.guards import guarded
from ray_apps.serve.policy import Limits, Security
from ray_apps.serve.routing import ServedModel
from tests import tiny

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".clients" / "bin"
KEY = "sk-conformance"
TEMPLATE = (
    "{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool> Call with <tool_call>.{% endfor %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
)
TO_NOWHERE = "http://127.0.0.1:9"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "http_proxy": TO_NOWHERE,
    "https_proxy": TO_NOWHERE,
    "no_proxy": "127.0.0.1",
}
"""What keeps the programs from asking anybody but the endpoint; whatever asks nevertheless fails at once."""


@dataclass(frozen=True)
class Served:
    """A model called `tiny` at `url`, whose files are in `directory`."""

    url: str
    directory: Path


@dataclass(frozen=True)
class Programs:
    """The installed programs, with a home of their own."""

    home: Path

    def run(self, program: str, *arguments: object, **variables: str) -> str:
        """What it prints, when it has ended well."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        environment = {**kept, **OFFLINE, "HOME": str(self.home), "OPENAI_API_KEY": KEY, **variables}
        command = [str(BIN / program), *map(str, arguments)]
        # `llm` reads what it is given on stdin.
        done = subprocess.run(
            command,
            cwd=self.home,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, script: str, *arguments: object, **variables: str) -> dict[str, Any]:
        """What one of our scripts for their libraries tells, as JSON in its last line."""
        printed = self.run("python", Path(__file__).parent / "programs" / script, *arguments, **variables)
        told: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return told


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The programs of `.clients`."""
    assert (BIN.parent / ".ready").exists(), "the programs are not installed: make .clients/.ready"
    return Programs(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A random model with tools, behind the guards that an endpoint has."""
    directory = tiny.write_model(tmp_path_factory.mktemp("model"), max_position_embeddings=2048, initializer_range=0.2)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    engine = build_engine("native", str(directory), EngineOptions(device="cpu", dtype="float32"))
    api = create_api([ServedModel("tiny", EngineBackend(engine))])
    keys = load_keys(None, {KEYS_VARIABLE: KEY})
    server = uvicorn.Server(
        uvicorn.Config(guarded(api, keys, Security(), Limits()), lifespan="off", log_config=None, ws="none")
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", directory)
        server.should_exit = True
        thread.join()
    engine.shutdown()
