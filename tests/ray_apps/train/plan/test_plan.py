"""What a plan says, held against published sizes and against itself. No GPU, no weights, no network."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from data_prep.errors import ConfigError, ModelError, RunError
from ray_apps.train.config import TrainConfig
from ray_apps.train.plan import published
from ray_apps.train.plan.gpus import GPUS, find_gpu
from ray_apps.train.plan.plan import Plan, Rows, find_rows, make_plan
from ray_apps.train.plan.serving import serving_memory
from ray_apps.train.plan.shapes import find_model_config
from ray_apps.train.plan.tally import Tally, dissect

GIB = 2**30


def make_plan_of(
    model: str = "huggyllama/llama-7b", gpu: str = "a800-80g", num_rows: int | None = None, **fields: Any
) -> Plan:
    places = {"model": model, "dataset": "dataset", "run_dir": "run", "output": "tuned"}
    config = TrainConfig.parse({**places, "num_workers": 2, **fields})
    return make_plan(config, gpu, Rows(2048, num_rows, 2048, "a test"), mfu=0.4, price=2.0)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("huggyllama/llama-7b", 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
    ],
)
def test_well_known_models_have_their_published_number_of_weights(model: str, parameters: int) -> None:
    assert serving_memory(find_model_config(model)[0], 2048).parameters == parameters


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strategy": "deepspeed"}, r"train\.strategy: 'deepspeed' is not planned yet; expected 'fsdp'"),
        ({"num_workers": 1, "optimizer": "adamw_8bit"}, r"train\.optimizer: 'adamw_8bit' is not planned yet"),
        ({"num_workers": 1, "quantize_base": "nf4"}, r"'nf4' is not valid without train\.lora"),
        ({"num_workers": 1, "quantize_base": "nf4", "lora": {}}, r"train\.quantize_base: 'nf4' is not planned yet"),
    ],
)
def test_what_is_not_planned_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan_of(**fields)


def test_workers_that_share_a_batch_unevenly_have_traffic() -> None:
    assert make_plan_of(num_workers=[1, 8], global_batch_size=8, micro_batch_size=2).duration.traffic_s > 0


def test_a_directory_with_a_config_alone_is_enough(tmp_path: Path) -> None:
    shape = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=100
    )
    shape.save_pretrained(tmp_path)
    config, source = find_model_config(str(tmp_path))
    assert config.num_hidden_layers == 3
    assert source == str(tmp_path / "config.json")


@pytest.mark.parametrize("text", ["{}", "not json", '{"model_type": "unheard-of"}'])
def test_a_directory_that_holds_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        find_model_config(str(tmp_path))


def test_state_is_sixteen_bytes_a_weight_over_all_workers() -> None:
    plan = make_plan_of(num_workers=8)
    step = next(phase for phase in plan.memory.phases if phase.name == "optimiser step")
    assert step.total_bytes * 8 == pytest.approx(16 * plan.anatomy.parameters)


def test_offload_moves_the_state_to_the_host() -> None:
    plain, offloaded = make_plan_of(), make_plan_of(fsdp={"cpu_offload": True})
    moved = plain.memory.peak.total_bytes - offloaded.memory.peak.total_bytes
    always = sum(size for part, size in offloaded.memory.host_parts.items() if part.startswith("always"))
    assert moved == pytest.approx(always, rel=1e-6)
    assert not any(part.startswith("always") for part in plain.memory.host_parts)


def test_checkpoints_and_adapters_save_memory() -> None:
    full = make_plan_of().memory.peak.total_bytes
    kept = make_plan_of(activation_checkpointing=False).memory.peak.total_bytes
    adapters = make_plan_of(lora={}).memory.peak.total_bytes
    assert adapters < full / 2
    assert kept > full + 20 * GIB / 2


def test_a_run_that_does_not_fit_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_plan_of(gpu="a100-40g").free_bytes < 0 < make_plan_of().free_bytes


def test_steps_time_and_cost() -> None:
    plan = make_plan_of(num_rows=1280, global_batch_size=128, epochs=3)
    assert plan.num_steps == 30
    assert plan.total_s == pytest.approx(30 * plan.duration.step_s)
    assert plan.cost == pytest.approx(plan.total_s / 3600 * 2 * 2.0)
    assert make_plan_of().cost is None


def test_fewer_rows_than_a_batch_are_refused() -> None:
    with pytest.raises(RunError, match="global_batch_size"):
        make_plan_of(num_rows=5)


def test_operations_are_six_a_weight_and_two_more_for_checkpoints() -> None:
    """Of the layers, and without attention, whose share grows with the row."""
    plan = make_plan_of()
    anatomy = plan.anatomy
    attention = 8 * 2048 * anatomy.attention_width * anatomy.num_layers
    multiplied = anatomy.num_layers * anatomy.layer_parameters + anatomy.output_parameters
    assert plan.duration.flops_per_token - attention == pytest.approx(8 * multiplied)
    kept = make_plan_of(activation_checkpointing=False)
    assert kept.duration.flops_per_token == pytest.approx(plan.duration.flops_per_token * 3 / 4, rel=0.01)


def test_rows_are_those_of_the_dataset(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config()
    rows = find_rows(config, 4096, None)
    assert rows.num_rows
    assert rows.context_length != 4096
    assert rows.tokens <= rows.context_length
    assert find_rows(config, None, 77).num_rows == 77


def test_without_a_dataset_the_recipe_says_how_long_rows_are(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(dataset="nowhere")
    assert find_rows(config, 512, None) == Rows(512, None, 512, "the recipe: rows as full as they can be")
    with pytest.raises(ConfigError, match=r"train\.dataset: 'nowhere' is not there yet"):
        find_rows(config, None, None)


def test_an_unknown_gpu_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="a800-80g"):
        find_gpu("a900")
    assert find_gpu("H100-80G") is GPUS["h100-80g"]


def test_published_needs_for_serving_hold() -> None:
    """14 and 28 GB on a GPU, 30 and 60 on a CPU, a card of 16 GB: enough for weights and a cache, not twice enough."""
    for figure in published.serving_figures():
        assert figure.weights_bytes / 1e9 < figure.published_gb < figure.weights_bytes / 1e9 * 1.25, figure


def test_nf4_is_half_a_byte_and_a_scale_for_64_weights() -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=100
    )
    memory = serving_memory(config, 10)
    linear = 2 * (4 * 64 * 64 + 3 * 64 * 128)
    others = 2 * (memory.parameters - linear)
    assert memory.weights_bytes["nf4"] == others + linear // 2 + 4 * linear // 64
    assert memory.cache_bytes == 10 * 2 * 2 * 2 * 64


def test_the_published_run_is_planned_and_accounted_for() -> None:
    comparison = published.compare()
    assert comparison.plan.num_steps == published.NUM_STEPS
    assert sum(term.mib for term in comparison.terms) + comparison.unexplained_mib == pytest.approx(
        published.RESERVED_MIB
    )
    assert 0 <= comparison.unexplained_mib < published.RESERVED_MIB / 20
    assert 0.3 < comparison.mfu < 0.4


def test_a_tally_counts_what_is_alive_once() -> None:
    known = torch.zeros(100)
    with Tally([known]) as tally:
        first = known + 1
        view = first[:10]
        known.view(10, 10)
        del first
        assert tally.live_bytes == 400
        del view
        assert tally.live_bytes == 0
    assert tally.peak_bytes == 400


def test_anatomy_does_not_depend_on_the_number_of_layers() -> None:
    config = TrainConfig.parse({"model": "base", "dataset": "d", "run_dir": "r", "output": "o"})
    shallow, deep = (
        dissect(LlamaConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=layers), config, 128)
        for layers in (2, 9)
    )
    assert (shallow.layer, shallow.head) == (deep.layer, deep.head)
    assert deep.parameters - shallow.parameters == 7 * shallow.layer_parameters


def test_the_json_form_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    from ray_apps.train.plan.report import report_plan

    places = {"model": "huggyllama/llama-7b", "dataset": "nowhere", "run_dir": "run", "output": "tuned"}
    config = TrainConfig.parse({**places, "num_workers": 2})
    report_plan(config, "a800-80g", 2048, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["fits"] is True
    assert printed["num_steps"] is None
    assert printed["published"]["planned_num_steps"] == published.NUM_STEPS
    report_plan(config, "a800-80g", 2048)
    words = capsys.readouterr().out
    assert "71,518 reserved" in words
    assert "Steps and cost need to know the rows" in words
