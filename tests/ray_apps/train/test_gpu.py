"""Training on a CUDA device, without Ray: `pytest -m gpu`."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ray_apps.run_dir import RunDir
from ray_apps.train.attention import per_document_attention
from ray_apps.train.config import TrainConfig
from ray_apps.train.loop import run_training
from ray_apps.train.objective import chunked_loss, fused_loss
from tests.processes import CONTEXT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def nccl(tmp_path: Path) -> Iterator[None]:
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class StoppedError(Exception):
    pass


def stop_after_four(measures: dict[str, Any]) -> None:
    if measures["step"] == 4:
        raise StoppedError


def losses(config: TrainConfig) -> list[float]:
    run_training(config, torch.device("cuda"), after_save=lambda measures: None)
    return recorded(config)


def recorded(config: TrainConfig) -> list[float]:
    return [record["loss"] for record in RunDir(config.run_dir).read_metrics() if "loss" in record]


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_a_gpu_learns_and_resumes(
    make_config: Callable[..., TrainConfig], nccl: None, tmp_path: Path, attention: str
) -> None:
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    config = make_config(max_steps=6, precision="bf16", attention=attention)
    whole = losses(config)
    assert whole[-1] < whole[0]

    torn = config.model_copy(update={"run_dir": str(tmp_path / "torn")})
    with pytest.raises(StoppedError):
        run_training(torn, torch.device("cuda"), stop_after_four)
    assert losses(torn) == pytest.approx(whole, rel=1e-3)


def train_alike(config: TrainConfig, rendezvous: str, *, stops: bool) -> None:
    """In a process of its own: cuBLAS is asked for the same bits before its first product."""
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    with suppress(StoppedError):
        run_training(config, torch.device("cuda"), stop_after_four if stops else lambda measures: None)
    dist.destroy_process_group()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deterministic_run_resumes_to_the_same_bits(
    make_config: Callable[..., TrainConfig], tmp_path: Path, precision: str
) -> None:
    config = make_config(max_steps=8, precision=precision, deterministic=True, lora={"r": 4, "dropout": 0.1})
    torn = config.model_copy(update={"run_dir": str(tmp_path / "torn")})
    for number, (run, stops) in enumerate([(config, False), (torn, True), (torn, False)]):
        process = CONTEXT.Process(
            target=train_alike, args=(run, f"{tmp_path}/rendezvous-{number}"), kwargs={"stops": stops}
        )
        process.start()
        process.join()
        assert process.exitcode == 0
    assert len(recorded(config)) == 8
    assert recorded(torn) == recorded(config)


def test_offload_gives_the_same_losses(make_config: Callable[..., TrainConfig], nccl: None, tmp_path: Path) -> None:
    plain = make_config(max_steps=3, run_dir=str(tmp_path / "plain"), tf32=False)
    offloaded = make_config(max_steps=3, run_dir=str(tmp_path / "offload"), tf32=False, fsdp={"cpu_offload": True})
    assert losses(offloaded) == pytest.approx(losses(plain), rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_deepspeed_gives_the_same_losses(make_config: Callable[..., TrainConfig], nccl: None, tmp_path: Path) -> None:
    """All of it in one process group: DeepSpeed remembers the one it started with."""
    plain = losses(make_config(max_steps=3, run_dir=str(tmp_path / "plain"), tf32=False))
    for stage, offload in [(2, "none"), (2, "optimizer"), (3, "none"), (3, "optimizer_and_weights")]:
        config = make_config(
            max_steps=3,
            run_dir=str(tmp_path / f"{stage}-{offload}"),
            tf32=False,
            strategy="deepspeed",
            deepspeed={"stage": stage, "offload": offload},
        )
        assert losses(config) == pytest.approx(plain, rel=1e-3), config.run_dir


@pytest.mark.parametrize(
    "fields", [{"optimizer": "adamw_8bit"}, {"quantize_base": "nf4", "lora": {"r": 4}, "learning_rate": 1e-2}]
)
def test_bitsandbytes_learns(make_config: Callable[..., TrainConfig], nccl: None, fields: dict[str, Any]) -> None:
    curve = losses(make_config(max_steps=6, precision="bf16", **fields))
    assert curve[-1] < curve[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_liger_gives_the_loss_of_chunks(dtype: torch.dtype) -> None:
    pytest.importorskip("liger_kernel")
    torch.manual_seed(0)
    head = torch.nn.Linear(256, 4000, bias=False, device="cuda", dtype=dtype)
    hidden = torch.randn(700, 256, device="cuda", dtype=dtype, requires_grad=True)
    targets, weights = torch.randint(0, 4000, (700,), device="cuda"), torch.rand(700, device="cuda")
    trained = torch.arange(0, 700, 3, device="cuda")
    results = []
    for compute in (chunked_loss, fused_loss):
        loss = compute(hidden, head, targets, weights, trained)
        results.append((loss, *torch.autograd.grad(loss * 0.5, (hidden, head.weight))))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(*results, **tolerance)


def test_attention_between_borders_is_attention_in_each_chat() -> None:
    torch.manual_seed(0)
    lengths = [1, 70, 129, 8]
    borders = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)
    shapes = [(1, heads, sum(lengths), 64) for heads in (6, 2, 2)]
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    module = torch.nn.Identity()
    results = []
    for longest in (max(lengths), None):
        output, _ = per_document_attention(module, *inputs, None, cu_seq_lens_q=borders, max_length_q=longest)
        weights = torch.arange(output.numel(), device="cuda").view(output.shape).sin()
        results.append((output, *torch.autograd.grad((output.float() * weights).sum(), inputs)))
    torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)
