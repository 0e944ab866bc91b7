"""The native engine on a CUDA device, without Ray: `pytest -m gpu`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.native.loading import load_model
from tests.ray_apps.engine.contract import EngineContract, answer, ids, reference, request, write_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(directory: Path) -> PreTrainedModel:
    return reference(directory)


@pytest.fixture(scope="module")
def engine(directory: Path) -> Iterator[NativeEngine]:
    torch.set_float32_matmul_precision("highest")
    engine = NativeEngine(load_model(str(directory), device="cuda", dtype="float32", max_model_len=None))
    yield engine
    engine.shutdown()


class TestNativeEngineOnAGpu(EngineContract):
    """In fp32, so that its tokens are those of transformers on a CPU."""


@pytest.mark.parametrize("quantize", [None, "int8", "nf4"])
async def test_sixteen_bits_and_fewer_answer(directory: Path, quantize: str | None) -> None:
    if quantize:
        pytest.importorskip("bitsandbytes")
    loaded = load_model(str(directory), device="cuda", dtype="bfloat16", max_model_len=None, quantize=quantize)
    engine = NativeEngine(loaded)
    try:
        first, again = [ids(await answer(engine, request(max_tokens=30, ignore_eos=True))) for _ in range(2)]
        assert len(first) == 30
        assert first == again
    finally:
        engine.shutdown()
