"""DeepSpeed gives what FSDP gives, stops and resumes anywhere, and changes stage and world size on the way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ray_apps.run_dir import RunDir
from ray_apps.train.config import TrainConfig
from ray_apps.train.export import export
from tests.ray_apps.train.ranks import Ranks, losses

pytestmark = pytest.mark.slow

NUM_STEPS = 20

Make = Callable[..., TrainConfig]


def zero(stage: int, **fields: Any) -> dict[str, Any]:
    return {"strategy": "deepspeed", "deepspeed": {"stage": stage, **fields}}


def exported(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(export(config) / "model.safetensors")


def test_every_strategy_gives_the_losses_of_one_process(make: Make, one_rank: Ranks, two_ranks: Ranks) -> None:
    """The first 20 steps, in fp32, with two micro-batches a rank and step."""
    steps: dict[str, Any] = {"max_steps": NUM_STEPS, "checkpoint": {"every_steps": NUM_STEPS, "keep_last": 1}}
    one = make("one", **steps)
    spread = [
        make("fsdp", **steps),
        make("zero-1", **steps, **zero(1)),
        make("zero-2", **steps, **zero(2)),
        make("zero-3", **steps, **zero(3)),
        make("zero-2-offload", **steps, **zero(2, offload="optimizer")),
        make("zero-3-offload", **steps, **zero(3, offload="optimizer_and_weights")),
    ]
    one_rank.train(one)
    two_ranks.train(*spread)
    expected, weights = losses(one), exported(one)
    assert len(expected) == NUM_STEPS
    assert expected[-1] < expected[0] - 1
    for config in spread:
        assert losses(config) == pytest.approx(expected, abs=1e-3), config.run_dir
        for name, weight in exported(config).items():
            torch.testing.assert_close(weight, weights[name], atol=1e-3, rtol=0, msg=f"{config.run_dir} {name}")


def test_a_resumed_run_ends_bit_identical(make: Make, two_ranks: Ranks) -> None:
    """In both precisions: what is saved are the fp32 master weights."""
    kinds = {
        "1": {**zero(1), "precision": "bf16"},
        "2": {**zero(2), "precision": "bf16"},
        "2-fp32": zero(2),
        "2-offload": {**zero(2, offload="optimizer"), "precision": "bf16"},
        "3": {**zero(3), "precision": "bf16"},
        "3-fp32": zero(3),
        "3-offload": {**zero(3, offload="optimizer_and_weights"), "precision": "bf16"},
    }
    for kind, fields in kinds.items():
        whole, torn = make(f"whole-{kind}", **fields), make(f"torn-{kind}", **fields)
        two_ranks.train(whole)
        two_ranks.train(torn, stop_after=4)
        assert len(losses(torn)) == 4
        two_ranks.train(torn)
        assert losses(torn) == losses(whole), kind
        theirs = exported(whole)
        assert all(torch.equal(weight, theirs[name]) for name, weight in exported(torn).items()), kind


def test_a_checkpoint_is_read_at_any_stage_and_world_size(make: Make, one_rank: Ranks, two_ranks: Ranks) -> None:
    """Two ranks at one stage, then one rank at another, then two at a third: the losses of an uninterrupted run."""
    expected = make("whole", **zero(2))
    two_ranks.train(expected)
    for route in [(2, 3, 2), (3, 1, 3), (1, 2, 3)]:
        name = "".join(map(str, route))
        two_ranks.train(make(name, **zero(route[0])), stop_after=2)
        one_rank.train(make(name, **zero(route[1])), stop_after=4)
        two_ranks.train(make(name, **zero(route[2])))
        assert losses(make(name)) == pytest.approx(losses(expected), abs=1e-4), route


def test_adapters_train_as_under_fsdp(make: Make, two_ranks: Ranks, tiny_model_dir: Path) -> None:
    lora = {"lora": {"r": 4, "dropout": 0.0}, "learning_rate": 1e-2, "eval_every_steps": 6}
    expected = make("fsdp", **lora)
    runs = [make(f"zero-{stage}", **lora, **zero(stage)) for stage in (1, 2, 3)]
    two_ranks.train(expected, *runs)
    base = load_file(tiny_model_dir / "model.safetensors")
    for config in runs:
        assert losses(config) == pytest.approx(losses(expected), abs=1e-3), config.run_dir
        assert held_out(config) == pytest.approx(held_out(expected), abs=1e-3)
        weights = exported(config)
        changed = {name for name in base if not torch.equal(base[name], weights[name])}
        assert changed == {name for name in base if "q_proj" in name or "v_proj" in name}


def held_out(config: TrainConfig) -> list[float]:
    return [record["eval_loss"] for record in RunDir(config.run_dir).read_metrics() if "eval_loss" in record]


@pytest.mark.parametrize("lora", [None, {"r": 4, "dropout": 0.0}])
def test_bf16_follows_fsdp_s(make: Make, one_rank: Ranks, two_ranks: Ranks, lora: dict[str, Any] | None) -> None:
    fields = {"precision": "bf16", "lora": lora, "learning_rate": 1e-2 if lora else 1e-3}
    expected, alone = make("fsdp", **fields), make("one", **fields)
    runs = [make(f"zero-{stage}", **fields, **zero(stage)) for stage in (1, 2, 3)]
    runs.append(make("offload", **fields, **zero(3, offload="optimizer_and_weights")))
    one_rank.train(alone)
    two_ranks.train(expected, *runs)
    for config in [alone, *runs]:
        assert losses(config) == pytest.approx(losses(expected), abs=2e-2), config.run_dir


def test_master_weights_start_from_what_the_base_stores(make: Make, two_ranks: Ranks, tiny_model_dir: Path) -> None:
    """Not from its bf16 roundings."""
    base = load_file(tiny_model_dir / "model.safetensors")
    for stage in (1, 2, 3):
        config = make(f"zero-{stage}", precision="bf16", learning_rate=1e-30, max_steps=1, **zero(stage))
        two_ranks.train(config)
        for name, weight in exported(config).items():
            torch.testing.assert_close(weight, base[name], rtol=0, atol=1e-20, msg=f"{config.run_dir} {name}")


def test_gradients_that_are_not_finite_end_the_run(make: Make, two_ranks: Ranks) -> None:
    """DeepSpeed leaves such a step out and would go on."""
    wild = {"learning_rate": 1e30, "schedule": "constant", "warmup_ratio": 0.0}
    for stage, precision in [(1, "bf16"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")]:
        config = make(f"{stage}-{precision}", **wild, **zero(stage), precision=precision)
        two_ranks.train(config)
        last = RunDir(config.run_dir).read_metrics()[-1]
        assert last["event"] == "failed", config.run_dir
        assert "the chats of its batch" in last["message"]
