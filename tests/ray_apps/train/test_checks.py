import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from data_prep.errors import ConfigError, DataError, ModelError, RunError
from data_prep.manifest import read_manifest
from ray_apps.run_dir import RunDir
from ray_apps.train.checks import check_run, count_run_steps
from ray_apps.train.config import TrainConfig
from ray_apps.train.loop import run_training
from ray_apps.train.receipt import run_receipt
from tests import tiny
from tests.processes import CPU


def test_the_dummy_data_of_the_published_run_gives_112_steps(
    make_config: Callable[..., TrainConfig], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """910 ShareGPT-form conversations, batch 16, two epochs, no packing."""
    dataset = tiny.write_dataset(tmp_path / "dummy", tiny_model_dir, count=910, pack=False, template="chatml")
    config = make_config(
        dataset=str(dataset), global_batch_size=16, epochs=2, learning_rate=2e-5, warmup_ratio=0.03, weight_decay=0.0
    )
    manifest = check_run(config)
    assert manifest.train.rows == 910
    assert count_run_steps(config, manifest) == 112


def test_a_dataset_of_another_tokenizer_is_refused(
    make_config: Callable[..., TrainConfig], tiny_model_dir: Path, tmp_path: Path
) -> None:
    other = tiny.write_model(tmp_path / "other")
    tokenizer = tiny.sentencepiece_like(legacy=True)
    tokenizer.save_pretrained(other)
    with pytest.raises(DataError, match=r"was made with the tokenizer of '.*tiny-model.*', which is not that of"):
        check_run(make_config(model=str(other)))


def test_a_context_longer_than_the_model_s_is_refused(
    make_config: Callable[..., TrainConfig], tiny_model_dir: Path, tmp_path: Path
) -> None:
    dataset = tiny.write_dataset(tmp_path / "long", tiny_model_dir, context_length=1024, template="chatml")
    with pytest.raises(ConfigError, match=r"data.context_length: 1024 is more than the 512 tokens"):
        check_run(make_config(dataset=str(dataset)))


def test_missing_inputs_are_refused(make_config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(DataError, match=r"train.dataset: dataset 'nowhere': there is no manifest.json"):
        check_run(make_config(dataset="nowhere"))
    with pytest.raises(ModelError, match=r"model './nowhere': no such directory"):
        check_run(make_config(model="./nowhere"))


def test_the_receipt_tells_outcomes_apart_not_machines(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config()
    manifest = read_manifest(config.dataset)
    receipt = run_receipt(config, manifest)
    elsewhere = config.model_copy(update={"num_workers": 4, "run_dir": "elsewhere", "attention": "sdpa"})
    assert run_receipt(elsewhere, manifest) == receipt
    assert run_receipt(config.model_copy(update={"seed": 1}), manifest) != receipt


@pytest.mark.parametrize("damage", ["truncated", "missing", "emptied"])
def test_a_damaged_dataset_is_refused(
    make_config: Callable[..., TrainConfig], tiny_model_dir: Path, tmp_path: Path, damage: str
) -> None:
    dataset = tiny.write_dataset(tmp_path / "dataset", tiny_model_dir, template="chatml")
    (part,) = (dataset / "train").iterdir()
    if damage == "truncated":
        part.write_bytes(part.read_bytes()[:100])
        expected = r"part-0\.parquet: damaged Parquet file"
    else:
        part.unlink()
        expected = r"train/ has 0 rows, its manifest counts \d+"
        if damage == "emptied":
            (dataset / "train").rmdir()
    with pytest.raises(DataError, match=expected):
        check_run(make_config(dataset=str(dataset)))


def test_more_workers_than_the_machine_has_are_refused_before_anything_is_written(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray_apps.train.checks.available", lambda: {"CPU": 3, "GPU": 0})
    config = make_config(num_workers=4)
    with pytest.raises(ConfigError, match=r"train\.num_workers: 4 is not valid here: .* for at most 3"):
        check_run(config)
    with pytest.raises(ConfigError, match=r"train\.use_gpu: True is not valid here: there is no GPU"):
        check_run(make_config(use_gpu=True))
    assert not Path(config.run_dir).exists()


@pytest.mark.parametrize("field", ["dataset", "output"])
def test_artifacts_are_on_a_disk(make_config: Callable[..., TrainConfig], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"{field}: 's3://bucket/x' must be a path on a disk"):
        make_config(**{field: "s3://bucket/x"})


def test_a_run_directory_is_on_a_disk_or_on_s3(make_config: Callable[..., TrainConfig]) -> None:
    assert make_config(run_dir="s3://bucket/run").run_dir == "s3://bucket/run"
    with pytest.raises(
        ConfigError, match=r"run_dir: .*'gs://bucket/run' is not valid; expected a path on a disk or s3:"
    ):
        make_config(run_dir="gs://bucket/run")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_workers": [3, 2]}, r"num_workers: \[3, 2\] is not valid; expected \[min, max\]"),
        ({"num_workers": [1, 8]}, r"num_workers: 8 workers are more than the 4 rows of a step"),
        ({"num_workers": 3}, r"global_batch_size: 4 is not a multiple of micro_batch_size × num_workers = 1 × 3 = 3"),
        ({"export": "best", "eval_every_steps": 2}, r"export: 'best' is not valid with checkpoint.keep_best 0"),
        ({"checkpoint": {"keep_best": 1}}, r"eval_every_steps: is required by checkpoint.keep_best"),
        ({"seed": 2**64}, r"seed: 18446744073709551616 is not valid; expected less than 9223372036854775808"),
        ({"run_dir": "s3://bucket"}, r"run_dir: 's3://bucket' is not valid; expected .* s3://bucket/key"),
        ({"model": "s3://b/bases/llama", "run_dir": "s3://b/bases"}, r"model: .* is not outside of run_dir"),
        ({"checkpoint": {"every_steps": None}}, r"every_steps: null needs every_s"),
        ({"checkpoint": {"every_s": "auto"}}, r"mean_time_between_preemptions_s: goes with every_s: 'auto'"),
        ({"checkpoint": {"mean_time_between_preemptions_s": 60}}, r"goes with every_s: 'auto', and only with it"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    make_config: Callable[..., TrainConfig], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"attention": "flash_attention_2", "precision": "bf16"},
            r"train\.attention: 'flash_attention_2' is not valid here: it needs a GPU",
        ),
        ({"fsdp": {"cpu_offload": True}}, r"train\.fsdp\.cpu_offload: True is not valid here: there is no GPU"),
        ({"deepspeed": {"stage": 3}}, r"train\.deepspeed: is not valid with train\.strategy 'fsdp'"),
        ({"strategy": "deepspeed", "fsdp": {"cpu_offload": True}}, r"expected deepspeed\.offload"),
        ({"lora": {"target_modules": ["lm_head"]}}, r"no linear layer of its own called lm_head; valid: down_proj, "),
    ],
)
def test_what_only_a_worker_would_find_is_refused(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray_apps.train.checks.available", lambda: {"CPU": 3, "GPU": 0})
    with pytest.raises(ConfigError, match=message):
        check_run(make_config(**fields))


def test_a_directory_that_is_no_run_is_refused(
    make_config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="it is not ours to replace"):
        check_run(make_config(run_dir="~/thesis"))


def test_a_dataset_without_a_trained_token_is_refused(
    make_config: Callable[..., TrainConfig], tiny_model_dir: Path, tmp_path: Path
) -> None:
    dataset = tiny.write_dataset(tmp_path / "dataset", tiny_model_dir, template="chatml")
    manifest = read_manifest(dataset)
    manifest.model_copy(update={"train": manifest.train.model_copy(update={"trained_tokens": 0})}).write(dataset)
    with pytest.raises(DataError, match="has no token to train on"):
        check_run(make_config(dataset=str(dataset)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": "a/run"}, "run_dir: 'a/run' is not outside of output 'a/run'"),
        ({"output": "a/run/model"}, "output: 'a/run/model' is not outside of run_dir 'a/run'"),
        ({"model": "a/model", "output": "a/model"}, "output 'a/model'"),
        ({"dataset": "a/run/dataset"}, "dataset: 'a/run/dataset' is not outside of run_dir 'a/run'"),
    ],
)
def test_artifacts_lie_apart(make_config: Callable[..., TrainConfig], fields: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**{"run_dir": "a/run", **fields})


def test_a_run_on_other_weights_is_another_run(
    make_config: Callable[..., TrainConfig], tiny_model_dir: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(tiny_model_dir, tmp_path / "moved")
    config = make_config()
    manifest = read_manifest(config.dataset)
    receipt = run_receipt(config, manifest)
    assert run_receipt(config.model_copy(update={"model": str(moved)}), manifest) == receipt
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert run_receipt(config.model_copy(update={"model": str(moved)}), manifest) != receipt


def test_a_worker_does_not_go_on_with_another_base(
    make_config: Callable[..., TrainConfig], process_group: None, tmp_path: Path, tiny_model_dir: Path
) -> None:
    """A hub id, which each machine looks up for itself, may stand for other weights by now."""
    base = shutil.copytree(tiny_model_dir, tmp_path / "base")
    config = make_config(model=str(base), max_steps=2)
    RunDir(config.run_dir).check_receipt(run_receipt(config, read_manifest(config.dataset)))
    assert run_training(config, CPU) == "finish"
    weights = load_file(base / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=r"^train\.model: the run was begun with a base \w{16}; .* is \w{16}$"):
        run_training(config, CPU)
