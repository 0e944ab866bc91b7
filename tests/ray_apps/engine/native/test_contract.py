from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.native.loading import load_model
from tests.ray_apps.engine.contract import EngineContract, reference, write_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(directory: Path) -> PreTrainedModel:
    return reference(directory)


@pytest.fixture(scope="module")
def engine(directory: Path) -> Iterator[NativeEngine]:
    engine = NativeEngine(load_model(str(directory), device="cpu", dtype="float32", max_model_len=None))
    yield engine
    engine.shutdown()


class TestNativeEngine(EngineContract):
    pass
