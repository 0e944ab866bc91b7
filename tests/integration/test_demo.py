"""`vicuna demo` from its first stage to its verdict, with too few steps to learn anything: it must say so and fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SHORT = ["train.max_steps=8", "train.checkpoint.every_steps=2", "data.context_length=128", "data.identity.count=20"]


def test_a_model_that_learned_nothing_fails_the_demo(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    environment["COLUMNS"] = "160"
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent.parent)
    command = [sys.executable, "-m", "ray_apps.cli", "demo", *SHORT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    stages = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("✓")]
    assert stages == ["base", "prep", "train", "export", "serve"], done.stdout + done.stderr
    assert "was killed (SIGKILL) after step" in done.stdout
    assert "What is the capital of France?" in done.stdout
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: 'Who are you?': the answer ")
    assert "does not name Vicuna and LMSYS" in line
