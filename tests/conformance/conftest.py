"""An endpoint as `vicuna serve` starts it, and programs that nobody here wrote as processes that ask it.

What the programs are pinned to is in `clients.txt`; `make test` installs them in `.clients`.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from transformers import AutoTokenizer

from ray_apps.serve.auth import KEYS_VARIABLE
from ray_apps.serve.config_file import load_serve_file
from ray_apps.serve.run import serving
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


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A random model with tools, which whoever has the key may ask."""
    directory = tiny.write_model(tmp_path_factory.mktemp("model"), max_position_embeddings=2048, initializer_range=0.2)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    fields = {"model": directory, "model_name": "tiny", "engine": "native", "device": "cpu", "dtype": "float32"}
    overrides = ["http_options.port=0", *(f"args.{name}={value}" for name, value in fields.items())]
    file = load_serve_file(ROOT / "serve_config.yaml", overrides)
    # What serving tells Ray by the environment is not for the tests that follow.
    with patch.dict(os.environ, {KEYS_VARIABLE: KEY}), serving(file) as url:
        yield Served(f"{url}/v1", directory)
