"""vLLM on a CPU: `make test-vllm`."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import PreTrainedModel

from data_prep.errors import ConfigError, ModelError
from ray_apps.engine.build import build_engine
from ray_apps.engine.options import EngineOptions
from ray_apps.engine.protocol import EngineStoppedError, UnsupportedError
from tests.ray_apps.engine.contract import PROMPT, EngineContract, answer, ids, plain, reference, request, write_model
from tests.vllm_processes import vllm_processes

pytest.importorskip("vllm")
from ray_apps.engine.vllm.engine import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]
ADAPTERS = {"a": 4, "b": 8}


@pytest.fixture(scope="module", autouse=True)
def _uncompiled() -> Iterator[None]:
    """Without what vLLM compiles in C++ when log probabilities are first asked for, which takes ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(directory: Path) -> PreTrainedModel:
    return reference(directory)


@pytest.fixture(scope="module")
def adapted(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, PreTrainedModel]]:
    """Directories of adapters, and the model with each, as peft merges them."""
    from peft import LoraConfig, get_peft_model

    made = {}
    for name, rank in ADAPTERS.items():
        config = LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        peft: Any = get_peft_model(reference(directory), config)
        peft.save_pretrained(folder := tmp_path_factory.mktemp("adapter"))
        made[name] = (folder, peft.merge_and_unload())
    return made


def start(directory: Path, **options: Any) -> VllmEngine:
    few = EngineOptions(device="cpu", max_num_seqs=4, engine_args={"enforce_eager": True}, **options)
    engine = build_engine("vllm", str(directory), few)
    assert isinstance(engine, VllmEngine)
    return engine


@pytest.fixture(scope="module")
def engine(directory: Path, adapted: dict[str, tuple[Path, PreTrainedModel]]) -> Iterator[VllmEngine]:
    engine = start(directory, adapters={name: str(folder) for name, (folder, _) in adapted.items()})
    yield engine
    engine.shutdown()


class TestVllmEngine(EngineContract):
    async def test_adapters_are_served_together(
        self, engine: VllmEngine, model: PreTrainedModel, adapted: dict[str, tuple[Path, PreTrainedModel]]
    ) -> None:
        names = ["a", None, "b"]
        found = await asyncio.gather(*(answer(engine, replace(request(), adapter=name)) for name in names))
        models = [adapted["a"][1], model, adapted["b"][1]]
        assert [ids(deltas) for deltas in found] == [plain(one, request()) for one in models]

    async def test_embeddings_are_refused_by_name(self, engine: VllmEngine) -> None:
        with pytest.raises(UnsupportedError, match="gives no embeddings; valid: engine native"):
            await engine.embed(PROMPT)

    async def test_texts_go_to_ids_and_back(self, engine: VllmEngine) -> None:
        text = "Who are you? 🙂 你好<|im_end|>"
        assert engine.decode(engine.encode_text(text)) == text
        assert engine.max_model_len == 512
        assert "im_start" in (engine.chat_template or "")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.1)


async def test_two_workers_give_the_tokens_of_one_and_a_dead_one_fails_the_whole(
    directory: Path, model: PreTrainedModel
) -> None:
    before = [*vllm_processes()]
    engine = start(directory, tensor_parallel_size=2)
    try:
        asked = [request(PROMPT[:length]) for length in (10, 50, 90)]
        found = await asyncio.gather(*(answer(engine, one) for one in asked))
        assert [ids(deltas) for deltas in found] == [plain(model, one) for one in asked]
        await engine.check_health()

        under_way = asyncio.create_task(answer(engine, request(max_tokens=400, ignore_eos=True)))
        await asyncio.sleep(0.05)
        workers = [one for one in vllm_processes("Worker") if one not in before]
        assert len(workers) == 2
        workers[1].kill()
        with pytest.raises(EngineStoppedError):
            await under_way
        with pytest.raises(EngineStoppedError):
            await engine.check_health()
        with pytest.raises(EngineStoppedError):
            await answer(engine, request())
    finally:
        engine.shutdown()
    await until(lambda: not [one for one in vllm_processes() if one not in before])


async def test_a_core_that_hangs_is_given_up(directory: Path) -> None:
    before = [*vllm_processes()]
    engine = start(directory)
    (core,) = [one for one in vllm_processes("EngineCore") if one not in before]
    try:
        waiting = asyncio.create_task(answer(engine, request(max_tokens=400, ignore_eos=True)))
        await until(lambda: engine.stats().num_generated_tokens > 0)
        await engine.check_health()
        core.suspend()
        engine._patience_s = 1.0
        async with asyncio.timeout(60):
            while await is_well(engine):
                await asyncio.sleep(0.1)
        with pytest.raises(EngineStoppedError):
            await waiting
        with pytest.raises(EngineStoppedError, match="has said nothing for 1 s"):
            await answer(engine, request())
    finally:
        core.resume()
        engine.shutdown()


async def is_well(engine: VllmEngine) -> bool:
    try:
        await engine.check_health()
    except EngineStoppedError:
        return False
    return True


async def test_shutdown_tells_those_who_wait(directory: Path) -> None:
    engine = start(directory)
    waiting = [asyncio.create_task(answer(engine, request(max_tokens=400, ignore_eos=True))) for _ in range(6)]
    await until(lambda: engine.stats().num_generated_tokens > 0)
    await asyncio.to_thread(engine.shutdown)
    assert all(isinstance(one, EngineStoppedError) for one in await asyncio.gather(*waiting, return_exceptions=True))
    with pytest.raises(EngineStoppedError):
        await engine.check_health()
    engine.shutdown()


OWNER = """
import sys, time
from ray_apps.engine.build import build_engine
from ray_apps.engine.options import EngineOptions
if __name__ == "__main__":
    engine = build_engine("vllm", sys.argv[1], EngineOptions(device="cpu", engine_args={"enforce_eager": True}))
    print("started", flush=True)
    time.sleep(300)
"""


async def test_what_vllm_started_ends_with_its_owner_killed(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "owner.py").write_text(OWNER)
    owner = subprocess.Popen([sys.executable, tmp_path / "owner.py", directory], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert any(line == "started\n" for line in owner.stdout)
        below = [*vllm_processes(below=owner.pid)]
        assert len(below) == 2
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    await until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in below))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, r"args\.device: 'cuda' is not valid; this build of vLLM runs on 'cpu'"),
        ({"max_model_len": 10**5}, r"args\.max_model_len: 100000 is not valid; the model reads at most 512 tokens"),
        ({"tensor_parallel_size": 3}, r"args\.tensor_parallel_size: 3 does not divide the model's 4 attention heads"),
        ({"engine_args": {"modle": 1}}, r"args\.engine_args\.modle: is no argument of vLLM's AsyncEngineArgs"),
        ({"engine_args": {"trust_remote_code": True}}, r"args\.engine_args\.trust_remote_code: is set by other fields"),
    ],
)
def test_wrong_settings_are_named(directory: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_engine("vllm", str(directory), EngineOptions(**{"device": "cpu", **options}))


def test_what_vllm_refuses_is_one_line(directory: Path) -> None:
    with pytest.raises(ModelError, match=r"vLLM does not start on it: [^\n]+$"):
        build_engine("vllm", str(directory), EngineOptions(device="cpu", engine_args={"quantization": "nonsense"}))
