from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_apps.train.config import TrainConfig
from tests import tiny
from tests.ray_apps.train.ranks import Ranks, started

Make = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def long_dataset(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows for 20 steps in one epoch, and some held out."""
    directory = tmp_path_factory.mktemp("long") / "dataset"
    return tiny.write_dataset(directory, tiny_model_dir, count=800, template="chatml", eval_fraction=0.05)


@pytest.fixture
def make(make_config: Make, long_dataset: Path, tmp_path: Path) -> Make:
    """A run with directories of its own for each name."""

    def named(name: str, **fields: Any) -> TrainConfig:
        places = {"run_dir": str(tmp_path / name), "output": str(tmp_path / f"{name}-model")}
        values = {"max_steps": 6, "checkpoint": {"every_steps": 2, "keep_last": 1, "asynchronous": False}}
        return make_config(**{"dataset": str(long_dataset), **places, **values, **fields})

    return named


@pytest.fixture(scope="package")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with started(1, tmp_path_factory.mktemp("one") / "rendezvous") as ranks:
        yield ranks


@pytest.fixture(scope="package")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    with started(2, tmp_path_factory.mktemp("two") / "rendezvous") as ranks:
        yield ranks
