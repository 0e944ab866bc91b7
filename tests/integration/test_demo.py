"""`vicuna demo` to its verdict, with too few steps to learn anything: it must say so and fail."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ray_apps.run_dir import RunDir

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SHORT = ["train.max_steps=6", "train.checkpoint.every_steps=2", "data.context_length=128", "data.identity.count=20"]


def interrupt_in_training(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Start the demo and send it Ctrl-C when it has saved a checkpoint; hold that no process of it is left."""
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    run = RunDir(folder / "artifacts" / "demo" / "run")
    deadline = time.monotonic() + 200
    while run.latest_checkpoint() is None:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=90) == 130
    assert [other for other in family if other.is_running() and other.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("is_interrupted", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_model_that_learned_nothing_fails_the_demo(tmp_path: Path, is_interrupted: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    environment["COLUMNS"] = "160"
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent.parent)
    command = [sys.executable, "-m", "ray_apps.cli", "demo", *SHORT]
    if is_interrupted:
        interrupt_in_training(command, tmp_path, environment)

    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    stages = [line for line in done.stdout.splitlines() if line.startswith("✓")]
    names = [line.split()[1] for line in stages]
    assert names == ["base", "prep", "train", "export", "serve"], done.stdout + done.stderr
    assert all(line.endswith("(already there)") == is_interrupted for line in stages[:2])
    assert "was killed (SIGKILL) after step" in done.stdout
    assert "What is the capital of France?" in done.stdout
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: 'Who are you?': the answer ")
    assert "does not name Vicuna and LMSYS" in line
