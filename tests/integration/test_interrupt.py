"""Ctrl-C, SIGTERM or a SIGKILL in the middle of a command: the same command goes on from there."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from ray_apps.recipe import load_recipe, train_section
from ray_apps.run_dir import RunDir
from ray_apps.serve.environment import VARIABLES
from tests import tiny
from tests.processes import run_ranks
from tests.ray_apps.train.test_loop import exported

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

STEPS = 150  # so many that workers whose command was killed cannot end the run in the second or two they live on


def vicuna(folder: Path, *arguments: str) -> list[str]:
    """Run a command to its end; the lines it printed."""
    done = subprocess.run(command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def interrupted(
    folder: Path, *arguments: str, when: Callable[[], object], exit_code: int = 130, by: int = signal.SIGINT
) -> list[str]:
    """Run a command, interrupt it once `when` holds, hold that nothing is left of it; the lines it printed.

    A terminal sends Ctrl-C to all processes of a command, and `kill` SIGTERM to one.
    """
    output = folder / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            command(*arguments), cwd=folder, env=environment(), stdout=file, stderr=file, start_new_session=True
        )
        wait_for(lambda: when() or process.poll() is not None)
        family = psutil.Process(process.pid).children(recursive=True)
        (os.killpg if by == signal.SIGINT else os.kill)(process.pid, by)
        assert process.wait(timeout=90) == exit_code, output.read_text()
    assert [other for other in family if other.is_running() and other.status() != psutil.STATUS_ZOMBIE] == []
    return output.read_text().splitlines()


def killed(folder: Path, *arguments: str, when: Callable[[], object], alone: bool = False) -> list[psutil.Process]:
    """Run a command and kill it (SIGKILL) once `when` holds; its other processes.

    They are killed with it, as when a machine is lost, unless it is to die `alone`.
    """
    process = subprocess.Popen(
        command(*arguments), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(lambda: when() or process.poll() is not None)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    if not alone:
        end(family)
    return family


def end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


def command(*arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", "ray_apps.cli", *arguments]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    return {**kept, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it never came so far"
        time.sleep(0.02)


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A folder with chats and a recipe."""
    (tmp_path / "chats.json").write_text(json.dumps(tiny.chats(20_000)))
    recipe = {
        "data": {
            "output": "dataset",
            "tokenizer": str(tiny_model_dir),
            "sources": ["chats.json"],
            "template": "chatml",
            "context_length": 256,
            "group_size": 100,
        },
        "train": {
            "model": str(tiny_model_dir),
            "dataset": "dataset",
            "run_dir": "run",
            "output": "model",
            "epochs": STEPS,
            "max_steps": STEPS,
            "global_batch_size": 2,
            "num_workers": 2,
            "checkpoint": {"every_steps": 5},
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def test_prep_goes_on_from_its_finished_groups_to_the_same_bytes(folder: Path) -> None:
    """After Ctrl-C, and after a SIGKILL of the whole command."""
    done = folder / ".dataset.work" / "done"
    told = interrupted(folder, "prep", "recipe.yaml", when=lambda: list(done.glob("*.json")))
    assert told[-1] == "interrupted; the same command goes on from here"
    before = {path.name: path.stat().st_mtime_ns for path in done.glob("*.json")}
    assert before
    assert not (folder / "dataset").exists()

    killed(folder, "prep", "recipe.yaml", when=lambda: len(list(done.glob("*.json"))) > len(before))
    after = {path.name: path.stat().st_mtime_ns for path in done.glob("*.json")}
    assert before.items() < after.items()
    assert not (folder / "dataset").exists()

    vicuna(folder, "prep", "recipe.yaml")
    vicuna(folder, "prep", "recipe.yaml", "data.output=whole")
    assert contents(folder / "dataset") == contents(folder / "whole")
    assert sorted(path.name for path in folder.glob(".*")) == []


def contents(dataset: Path) -> dict[str, bytes]:
    """Files of a dataset by name, but for the name of the dataset itself."""
    files = (path for path in dataset.rglob("*") if path.is_file())
    return {str(file.relative_to(dataset)): file.read_bytes().replace(dataset.name.encode(), b"") for file in files}


def test_train_goes_on_to_the_same_weights(folder: Path, tiny_model_dir: Path) -> None:
    """After SIGTERM, which saves first, and after a SIGKILL of the command alone: its workers live on a bit."""
    tiny.write_dataset(folder / "dataset", tiny_model_dir, count=64, template="chatml")
    run = RunDir(folder / "run")
    told = interrupted(folder, "train", "recipe.yaml", when=lambda: last_step(run) > 10, by=signal.SIGTERM)
    assert told[-1] == "interrupted; the same command goes on from here"
    first, stopped = run.latest_checkpoint(), run.read_metrics()[-1]
    assert first is not None
    assert stopped["event"] == "stopped"
    assert 10 < first.step == stopped["step"] < STEPS

    left = killed(folder, "train", "recipe.yaml", when=lambda: last_step(run) > first.step + 7, alone=True)
    vicuna(folder, "train", "recipe.yaml")
    end(left)
    starts = [record["step"] for record in run.read_metrics() if record.get("event") == "start"]
    assert starts[:2] == [0, first.step]
    assert len(starts) == 3
    assert first.step < starts[2] < STEPS
    steps = [record["step"] for record in run.read_metrics() if "loss" in record]
    assert len(steps) - len(set(steps)) <= 10  # the interval, and that of a save under way

    places = {"dataset": "dataset", "run_dir": "whole", "output": "whole-model"}
    overrides = [f"train.{name}={folder / place}" for name, place in places.items()]
    config = train_section(load_recipe(str(folder / "recipe.yaml"), overrides), "recipe.yaml")
    run_ranks(config, folder / "rendezvous", config.num_workers)
    torn, whole = load_file(folder / "model" / "model.safetensors"), exported(config)
    assert all((torn[name] == whole[name]).all() for name in whole)


def last_step(run: RunDir) -> int:
    return max((record["step"] for record in run.read_metrics() if "loss" in record), default=0)


def test_serve_starts_ray_with_what_it_needs_and_ends_with_ctrl_c(tiny_model_dir: Path, tmp_path: Path) -> None:
    application = {"import_path": "ray_apps.serve.app:build_app", "args": {"model": str(tiny_model_dir)}}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump({"applications": [application]}))
    output = tmp_path / "output.txt"
    began_with: dict[str, str] = {}

    def is_up() -> bool:
        if "until Ctrl-C" not in output.read_text():
            return False
        family = psutil.Process().children(recursive=True)
        (raylet,) = (process for process in family if process.name() == "raylet")
        began_with.update(raylet.environ())
        return True

    told = interrupted(tmp_path, *("serve", "serve.yaml", "http_options.port=0"), when=is_up, exit_code=0)
    assert told[-1] == "Stopping: answers under way are finished."
    assert VARIABLES.items() <= began_with.items()
