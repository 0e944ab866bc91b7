"""SIGKILL at every stage of a save, and checkpoints on S3: what is found afterwards is a complete checkpoint."""

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_prep.folder import Folder
from ray_apps.run_dir import RunDir
from ray_apps.train.config import TrainConfig
from tests import s3
from tests.processes import CPU, group, run_ranks, start
from tests.ray_apps.train.test_loop import exported, losses
from tests.s3 import Bucket

pytestmark = pytest.mark.slow

STAGES = ("make", "writing", "move_file", "write", "commit_as", "remove")
"""What a save does to its folder, in order: the place, the shards, the index, the marker, the name, the old ones."""


def die_at(stage: str, before: bool, number: int) -> None:
    """Make the `number`th call of a folder's operation the last thing this process does."""
    operation, seen = getattr(Folder, stage), 0

    @functools.wraps(operation)
    def deadly(folder: Folder, *arguments: object) -> object:
        nonlocal seen
        seen += "checkpoints" in folder.place
        if before and seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        result = operation(folder, *arguments)
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(Folder, stage, deadly)


def train_until_death(rendezvous: str, config: TrainConfig, stage: str, before: bool, number: int) -> None:
    from ray_apps.train.loop import run_training

    die_at(stage, before, number)
    with group(0, 1, rendezvous):
        run_training(config, CPU)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def expected(make_config: Callable[..., TrainConfig], whole: Path) -> dict[str, torch.Tensor]:
    config = make_config(run_dir=str(whole / "run"), output=str(whole / "model"), max_steps=6)
    if not Path(config.output).exists():
        run_ranks(config, whole / "rendezvous", 1)
    return exported(config)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_process_killed_in_the_middle_of_a_save(
    make_config: Callable[..., TrainConfig], tmp_path: Path, expected: dict[str, torch.Tensor], stage: str, before: bool
) -> None:
    config = make_config(max_steps=6, checkpoint={"every_steps": 1, "keep_last": 1, "asynchronous": before})
    number = {"make": 5, "writing": 5, "move_file": 4, "remove": 2}.get(
        stage, 3
    )  # in the third save, or the second removal
    process = start(train_until_death, str(tmp_path / "rendezvous"), config, stage, before, number)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found = RunDir(config.run_dir).latest_checkpoint()
    assert found is not None
    assert found.step >= 2
    assert found.damage() is None
    run_ranks(config, tmp_path / "rendezvous-again", 1)
    ours = exported(config)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert [path.name for path in Path(RunDir(config.run_dir).checkpoints.path).iterdir()] == ["step-00000006"]


@pytest.fixture
def aws(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What points `s3://` at the service, here and in the processes started from here."""
    variables = s3.variables(s3_endpoint)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


def train_with_environment(variables: dict[str, str], rendezvous: str, config: TrainConfig, stage: str) -> None:
    os.environ.update(variables)
    from ray_apps.train.loop import run_training

    if stage:
        die_at(stage, True, 3)
    with group(0, 1, rendezvous):
        run_training(config, CPU)


@pytest.mark.parametrize("stage", ["move_file", "write"], ids=["half-uploaded", "unmarked"])
def test_a_run_on_s3_resumes_from_there(
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    expected: dict[str, torch.Tensor],
    s3_endpoint: str,
    aws: dict[str, str],
    stage: str,
) -> None:
    bucket = Bucket(s3_endpoint, tmp_path.name)
    config = make_config(run_dir=f"{bucket.uri}/run", max_steps=6, checkpoint={"every_steps": 1, "keep_last": 2})
    first = start(train_with_environment, aws, str(tmp_path / "rendezvous-1"), config, stage)
    first.join()
    assert first.exitcode == -signal.SIGKILL
    found = RunDir(config.run_dir).latest_checkpoint()
    assert found is not None
    assert found.step == 2
    again = start(train_with_environment, aws, str(tmp_path / "rendezvous-2"), config, "")
    again.join()
    assert again.exitcode == 0
    run = RunDir(config.run_dir)
    assert [record["step"] for record in run.read_metrics() if record.get("event") == "start"] == [0, 2]
    assert len(losses(config)) == 6
    assert len(run.checkpoints.folders()) == 2
    assert run.tensorboard.sizes()
    ours = exported(config)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
