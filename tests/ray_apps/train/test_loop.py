import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.errors import RunError
from data_prep.manifest import read_manifest
from ray_apps.models import check_causal_lm
from ray_apps.run_dir import RunDir
from ray_apps.train.checks import check_run
from ray_apps.train.config import TrainConfig
from ray_apps.train.export import export, is_exported
from ray_apps.train.loop import count_steps, run_training
from ray_apps.train.receipt import run_receipt
from tests.processes import CPU, run_rank, run_ranks, start


def exported(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(export(config) / "model.safetensors")


def losses(config: TrainConfig) -> list[float]:
    """Of each step; of one that was done again, the last."""
    return list(
        {
            record["step"]: record["loss"] for record in RunDir(config.run_dir).read_metrics() if "loss" in record
        }.values()
    )


def test_a_resumed_run_ends_bit_identical(
    make_config: Callable[..., TrainConfig], process_group: None, tmp_path: Path
) -> None:
    whole = make_config(run_dir=str(tmp_path / "whole"), output=str(tmp_path / "whole-model"), max_steps=6)
    run_training(whole, CPU, after_save=lambda measures: None)

    class StoppedError(Exception):
        pass

    def stop(measures: dict[str, float]) -> None:
        if measures["step"] == 4:
            raise StoppedError

    torn = make_config(run_dir=str(tmp_path / "torn"), output=str(tmp_path / "torn-model"), max_steps=6)
    with pytest.raises(StoppedError):
        run_training(torn, CPU, stop)
    run_training(torn, CPU, after_save=lambda measures: None)

    ours, theirs = exported(torn), exported(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert losses(torn) == losses(whole)
    assert losses(whole)[-1] < losses(whole)[0]


@pytest.mark.slow
def test_world_size_does_not_change_the_run(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """1 × 4, 2 × 2, 4 × 1 and 2 × 1 × 2 rows: the same gradients, and a checkpoint of two ranks resumes on one."""
    shapes: dict[str, dict[str, Any]] = {
        "one": {"num_workers": 1, "micro_batch_size": 4},
        "two": {"num_workers": 2, "micro_batch_size": 2},
        "four": {"num_workers": 4, "micro_batch_size": 1},
        "accumulated": {"num_workers": 2, "micro_batch_size": 1},
    }
    curves, norms = {}, {}
    for name, shape in shapes.items():
        config = make_config(run_dir=str(tmp_path / name), max_steps=4, **shape)
        run_ranks(config, tmp_path / f"rendezvous-{name}", config.num_workers)
        curves[name] = losses(config)
        records = RunDir(config.run_dir).read_metrics()
        norms[name] = [record["grad_norm"] for record in records if "grad_norm" in record]
    for name in ("two", "four", "accumulated"):
        assert curves[name] == pytest.approx(curves["one"], rel=1e-4)
        assert norms[name] == pytest.approx(norms["one"], rel=1e-4)

    elastic = make_config(run_dir=str(tmp_path / "elastic"), max_steps=4, **shapes["two"])
    run_ranks(elastic, tmp_path / "rendezvous-a", 2, stop_after=2)
    run_ranks(elastic.model_copy(update=shapes["one"]), tmp_path / "rendezvous-b", 1)
    assert losses(elastic) == pytest.approx(curves["one"], rel=1e-4)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(12))
def test_a_run_killed_anywhere_ends_bit_identical(
    make_config: Callable[..., TrainConfig], tmp_path: Path, seed: int
) -> None:
    """SIGKILL of every rank at a random moment, in the middle of a save too; then the same command again."""
    rng = random.Random(seed)
    whole = make_config(run_dir=str(tmp_path / "whole"), output=str(tmp_path / "whole-model"), max_steps=8)
    run_ranks(whole, tmp_path / "rendezvous-whole", 1)
    torn = make_config(
        run_dir=str(tmp_path / "torn"),
        output=str(tmp_path / "torn-model"),
        max_steps=8,
        checkpoint={"every_steps": 1, "keep_last": 2},
    )
    process = start(run_rank, 0, 1, str(tmp_path / "rendezvous-torn"), torn, None)
    while process.is_alive() and not losses(torn):
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 1))
    process.kill()
    process.join()
    run_ranks(torn, tmp_path / "rendezvous-again", 1)
    ours, theirs = exported(torn), exported(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_lora_trains_adapters_only_and_exports_merged(
    make_config: Callable[..., TrainConfig], process_group: None, tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = make_config(lora={"r": 4}, max_steps=4, learning_rate=1e-2)
    run_training(config, CPU, after_save=lambda measures: None)
    merged, base = exported(config), load_file(tiny_model_dir / "model.safetensors")
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed
    assert all("q_proj" in name or "v_proj" in name for name in changed)
    assert losses(config)[-1] < losses(config)[0]


def test_the_exported_model_is_an_ordinary_one(
    make_config: Callable[..., TrainConfig], process_group: None, tiny_model_dir: Path
) -> None:
    config = make_config(max_steps=2)
    run_training(config, CPU, after_save=lambda measures: None)
    directory = export(config)
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**prompt, max_new_tokens=2, do_sample=False).shape[1] > prompt["input_ids"].shape[1]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    base = load_file(tiny_model_dir / "model.safetensors")
    assert set(load_file(directory / "model.safetensors")) == set(base)


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_what_some_bases_store_besides_their_weights_does_not_stop_the_export(
    make_config: Callable[..., TrainConfig],
    process_group: None,
    tiny_model_dir: Path,
    tmp_path: Path,
    lora: dict[str, int] | None,
) -> None:
    """Older conversions of LLaMA hold `rotary_emb.inv_freq`, which is computed on loading; Mistral's, a second form."""
    base = shutil.copytree(tiny_model_dir, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    stored = {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    save_file({"layers.0.attention.wq.weight": torch.ones(8)}, base / "consolidated.safetensors")
    config = make_config(model=str(base), max_steps=2, lora=lora)
    check_run(config)
    run_training(config, CPU, after_save=lambda measures: None)
    assert exported(config).keys() == weights.keys()
    check_causal_lm(Path(config.output))


def test_a_run_is_exported_with_the_settings_it_was_made_with(
    make_config: Callable[..., TrainConfig], process_group: None
) -> None:
    config = make_config(max_steps=2, lora={"r": 4, "alpha": 16})
    RunDir(config.run_dir).check_receipt(run_receipt(config, read_manifest(config.dataset)))
    run_training(config, CPU, after_save=lambda measures: None)
    other = make_config(max_steps=2, lora={"r": 4, "alpha": 160})
    with pytest.raises(RunError, match=r"holds a run made with other settings: lora\.alpha \(16 → 160\)"):
        export(other)
    assert not Path(config.output).exists()
    export(config)
    assert is_exported(config)
    with pytest.raises(RunError, match="holds a run made with other settings"):
        is_exported(other)


def test_a_non_finite_loss_stops_with_the_chats_of_its_batch(
    make_config: Callable[..., TrainConfig], process_group: None
) -> None:
    config = make_config(learning_rate=1e30, schedule="constant", warmup_ratio=0.0)
    with pytest.raises(RunError, match=r"step \d+: loss .*'chat-\d+'"):
        run_training(config, CPU, after_save=lambda measures: None)


def test_published_settings_give_112_steps(make_config: Callable[..., TrainConfig]) -> None:
    assert count_steps(910, make_config(global_batch_size=16, epochs=2)) == 112


def test_a_batch_larger_than_the_dataset_is_refused(make_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(RunError, match=r"train.global_batch_size: 128 is more than the dataset's 40 rows"):
        count_steps(40, make_config(global_batch_size=128))


def test_metrics_tell_the_whole_story(make_config: Callable[..., TrainConfig], process_group: None) -> None:
    config = make_config(max_steps=3, checkpoint={"every_steps": 2, "asynchronous": False})
    run_training(config, CPU, after_save=lambda measures: None)
    lines = (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
    kinds = [json.loads(line).get("event", "step") for line in lines]
    assert kinds == ["start", "step", "step", "checkpoint", "step", "checkpoint", "finish"]
    saves = [json.loads(line) for line in lines if '"checkpoint"' in line]
    assert [save["step"] for save in saves] == [2, 3]
    assert all(save["blocked_s"] >= save["total_s"] > 0 for save in saves)  # it was waited for
    assert list((Path(config.run_dir) / "tensorboard").iterdir())
