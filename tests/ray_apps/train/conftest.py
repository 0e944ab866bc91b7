import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from ray_apps.train.config import TrainConfig
from tests import tiny


@pytest.fixture(scope="session")
def tiny_dataset(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed chats of the tiny model's tokenizer."""
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "dataset", tiny_model_dir, template="chatml")


@pytest.fixture
def make_config(tiny_model_dir: Path, tiny_dataset: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A run of a few seconds; fields can be given."""

    def make(**fields: Any) -> TrainConfig:
        values = {
            "model": str(tiny_model_dir),
            "dataset": str(tiny_dataset),
            "run_dir": str(tmp_path / "run"),
            "output": str(tmp_path / "model"),
            "global_batch_size": 4,
            "learning_rate": 1e-3,
            "precision": "fp32",
            "checkpoint": {"every_steps": 2, "keep_last": 2},
            **fields,
        }
        return TrainConfig.parse(values)

    return make


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous-{os.getpid()}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
