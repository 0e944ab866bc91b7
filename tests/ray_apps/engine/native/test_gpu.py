"""The native engine on a CUDA device, without Ray: `pytest -m gpu`."""

import asyncio
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.native.forward import SlotModel
from ray_apps.engine.native.loading import load_model
from ray_apps.engine.protocol import EngineError, EngineStoppedError
from tests.ray_apps.engine.contract import PROMPT, EngineContract, answer, ids, reference, request, write_model

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
async def test_sixteen_bits_and_fewer_read_as_transformers_does(directory: Path, quantize: str | None) -> None:
    if quantize:
        pytest.importorskip("bitsandbytes")
    loaded, alone = (
        load_model(str(directory), device="cuda", dtype="bfloat16", max_model_len=None, quantize=quantize)
        for _ in range(2)
    )
    with torch.no_grad():
        expected = alone.model(torch.tensor([PROMPT], device="cuda")).logits[0].float().log_softmax(dim=-1)
    engine = NativeEngine(loaded)
    try:
        first, *further = await answer(engine, replace(request(max_tokens=30, ignore_eos=True), prompt_logprobs=1))
    finally:
        engine.shutdown()
    assert len(ids([first, *further])) == 30
    found = torch.tensor([one.logprob for one in first.prompt_logprobs], device="cuda")
    read = expected[torch.arange(len(PROMPT) - 1), list(PROMPT[1:])]
    torch.testing.assert_close(found, read, rtol=0.05, atol=0.1)


def lose_the_device(directory: str) -> None:
    """In a process of its own, for nothing works on the device afterwards."""
    engine = NativeEngine(load_model(directory, device="cuda", dtype="float32", max_model_len=None))
    lost = torch.zeros(1, device="cuda")
    SlotModel.forward = lambda *args: lost[torch.tensor([7], device="cuda")]  # type: ignore[method-assign]

    async def ask() -> None:
        with pytest.raises(EngineError):
            await answer(engine, request())
        await asyncio.to_thread(engine._thread.join)
        with pytest.raises(EngineStoppedError):
            await engine.check_health()
        with pytest.raises(EngineStoppedError):
            await answer(engine, request())

    asyncio.run(ask())


def test_a_lost_device_stops_the_engine(directory: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=lose_the_device, args=(str(directory),))
    process.start()
    process.join()
    assert process.exitcode == 0
