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
from tests import tiny
from tests.ray_apps.train.ranks import losses, run_all

NUM_STEPS = 20

Make = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def long_dataset(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows for 20 steps in one epoch."""
    return tiny.write_dataset(tmp_path_factory.mktemp("long") / "dataset", tiny_model_dir, count=800, template="chatml")


@pytest.fixture
def make(make_config: Make, long_dataset: Path, tmp_path: Path) -> Make:
    """A run of its own directory for each name."""

    def named(name: str, **fields: Any) -> TrainConfig:
        places = {"run_dir": str(tmp_path / name), "output": str(tmp_path / f"{name}-model")}
        values = {"max_steps": 6, "num_workers": 2, "checkpoint": {"every_steps": 4, "keep_last": 1}}
        return make_config(**{"dataset": str(long_dataset), **places, **values, **fields})

    return named


def zero(stage: int, **fields: Any) -> dict[str, Any]:
    return {"strategy": "deepspeed", "deepspeed": {"stage": stage, **fields}}


def exported(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(export(config) / "model.safetensors")


@pytest.mark.slow
def test_every_strategy_gives_the_losses_of_one_process(make: Make, tmp_path: Path) -> None:
    """The first 20 steps, in fp32, with two micro-batches a rank and step."""
    steps: dict[str, Any] = {"max_steps": NUM_STEPS, "checkpoint": {"every_steps": NUM_STEPS, "keep_last": 1}}
    one = make("one", num_workers=1, **steps)
    spread = [
        make("fsdp", **steps),
        make("zero-1", **steps, **zero(1)),
        make("zero-2", **steps, **zero(2)),
        make("zero-3", **steps, **zero(3)),
        make("zero-2-offload", **steps, **zero(2, offload="optimizer")),
        make("zero-3-offload", **steps, **zero(3, offload="optimizer_and_weights")),
    ]
    run_all([(one, None)], tmp_path / "rendezvous-1", 1)
    run_all([(config, None) for config in spread], tmp_path / "rendezvous-2", 2)
    expected, weights = losses(one), exported(one)
    assert len(expected) == NUM_STEPS
    assert expected[-1] < expected[0] - 1
    for config in spread:
        assert losses(config) == pytest.approx(expected, abs=1e-3), config.run_dir
        for name, weight in exported(config).items():
            torch.testing.assert_close(weight, weights[name], atol=1e-3, rtol=0, msg=f"{config.run_dir} {name}")


@pytest.mark.slow
def test_a_resumed_run_ends_bit_identical(make: Make, tmp_path: Path) -> None:
    """On two ranks, in both precisions: what is saved are the fp32 master weights."""
    kinds = {
        f"{stage}-{precision}": {**zero(stage), "precision": precision}
        for stage, precision in [(1, "bf16"), (2, "bf16"), (2, "fp32"), (3, "bf16"), (3, "fp32")]
    }
    whole = {kind: make(f"whole-{kind}", **fields) for kind, fields in kinds.items()}
    torn = {kind: make(f"torn-{kind}", **fields) for kind, fields in kinds.items()}
    runs = [*[(config, None) for config in whole.values()], *[(config, 4) for config in torn.values()]]
    run_all(runs, tmp_path / "rendezvous-a", 2)
    assert all(len(losses(config)) == 4 for config in torn.values())
    run_all([(config, None) for config in torn.values()], tmp_path / "rendezvous-b", 2)
    for kind in kinds:
        assert losses(torn[kind]) == losses(whole[kind]), kind
        theirs = exported(whole[kind])
        for name, weight in exported(torn[kind]).items():
            assert torch.equal(weight, theirs[name]), f"{kind} {name}"


@pytest.mark.slow
def test_a_checkpoint_is_read_at_any_stage_and_world_size(make: Make, tmp_path: Path) -> None:
    """Two ranks at one stage, then one rank at another, then two at a third: the losses of an uninterrupted run."""
    fields = {"checkpoint": {"every_steps": 2, "keep_last": 1}}
    expected = make("whole", **fields, **zero(2))
    routes = {(2, 3, 2): "a", (3, 1, 3): "b", (1, 2, 3): "c"}
    first = [make(name, **fields, **zero(stages[0])) for stages, name in routes.items()]
    second = [make(name, **fields, **zero(stages[1]), num_workers=1) for stages, name in routes.items()]
    third = [make(name, **fields, **zero(stages[2])) for stages, name in routes.items()]
    run_all([(expected, None), *[(config, 2) for config in first]], tmp_path / "rendezvous-a", 2)
    run_all([(config, 4) for config in second], tmp_path / "rendezvous-b", 1)
    run_all([(config, None) for config in third], tmp_path / "rendezvous-c", 2)
    for config in third:
        assert losses(config) == pytest.approx(losses(expected), abs=1e-4), config.run_dir


@pytest.mark.slow
def test_adapters_train_as_under_fsdp(make: Make, tiny_model_dir: Path, tmp_path: Path) -> None:
    lora = {"lora": {"r": 4, "dropout": 0.0}, "learning_rate": 1e-2, "eval_every_steps": 6}
    expected = make("fsdp", **lora)
    runs = [make(f"zero-{stage}", **lora, **zero(stage)) for stage in (1, 2, 3)]
    run_all([(config, None) for config in [expected, *runs]], tmp_path / "rendezvous", 2)
    base = load_file(tiny_model_dir / "model.safetensors")
    for config in runs:
        assert losses(config) == pytest.approx(losses(expected), abs=1e-3), config.run_dir
        weights = exported(config)
        changed = {name for name in base if not torch.equal(base[name], weights[name])}
        assert changed == {name for name in base if "q_proj" in name or "v_proj" in name}


@pytest.mark.slow
def test_bf16_follows_fsdp_s(make: Make, tmp_path: Path) -> None:
    bf16 = {"precision": "bf16", "max_steps": 10}
    expected = make("fsdp", **bf16)
    runs = [make(f"zero-{stage}", **bf16, **zero(stage)) for stage in (1, 2, 3)]
    runs.append(make("offload", **bf16, **zero(3, offload="optimizer_and_weights")))
    run_all([(config, None) for config in [expected, *runs]], tmp_path / "rendezvous", 2)
    for config in runs:
        assert losses(config) == pytest.approx(losses(expected), abs=2e-2), config.run_dir


@pytest.mark.slow
def test_gradients_that_are_not_finite_end_the_run(make: Make, tmp_path: Path) -> None:
    """DeepSpeed leaves such a step out and would go on."""
    wild = {"learning_rate": 1e30, "schedule": "constant", "warmup_ratio": 0.0}
    kinds = [(1, "bf16"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16")]
    runs = [make(f"{stage}-{precision}", **wild, **zero(stage), precision=precision) for stage, precision in kinds]
    run_all([(config, None) for config in runs], tmp_path / "rendezvous", 2)
    for config in runs:
        last = RunDir(config.run_dir).read_metrics()[-1]
        assert last["event"] == "failed", config.run_dir
        assert "the chats of its batch" in last["message"]
