from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.manifest import read_manifest
from ray_apps.run_dir import RunDir
from ray_apps.train.config import TrainConfig
from ray_apps.train.export import export, is_exported
from ray_apps.train.loop import run_training
from ray_apps.train.receipt import run_receipt

Make = Callable[..., TrainConfig]


def lora(form: str) -> dict[str, Any]:
    return {"r": 4, "alpha": 16, "target_modules": ["q_proj", "down_proj"], "export": form}


def test_an_exported_adapter_is_what_peft_reads(
    make_config: Make, process_group: None, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """On its base it gives the logits of the merged model. The same run can be exported in both forms."""
    fields = {"max_steps": 4, "learning_rate": 1e-2}
    adapter = make_config(**fields, lora=lora("adapter"), output=str(tmp_path / "adapter"))
    merged = make_config(**fields, lora=lora("merged"), output=str(tmp_path / "merged"))
    RunDir(adapter.run_dir).check_receipt(run_receipt(adapter, read_manifest(adapter.dataset)))
    run_training(adapter, torch.device("cpu"), after_save=lambda measures: None)
    directory = export(adapter)
    assert not (directory / "model.safetensors").exists()
    assert AutoTokenizer.from_pretrained(directory).chat_template

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model = PeftModel.from_pretrained(base, directory)
    ids = torch.arange(5, 25)[None]
    expected = AutoModelForCausalLM.from_pretrained(export(merged))(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert is_exported(adapter)
    assert is_exported(merged)


def test_another_form_is_another_export(make_config: Make, process_group: None) -> None:
    adapter = make_config(max_steps=2, lora=lora("adapter"))
    run_training(adapter, torch.device("cpu"), after_save=lambda measures: None)
    export(adapter)
    merged = make_config(max_steps=2, lora=lora("merged"))
    assert is_exported(adapter)
    assert not is_exported(merged)
    assert load_file(export(merged) / "model.safetensors")


@pytest.mark.parametrize("change", [{"strategy": "deepspeed"}, {"optimizer": "adamw_8bit"}, {"quantize_base": "nf4"}])
def test_another_strategy_is_another_run(make_config: Make, change: dict[str, str]) -> None:
    config = make_config(lora=lora("adapter"))
    manifest = read_manifest(config.dataset)
    assert run_receipt(config.model_copy(update=change), manifest) != run_receipt(config, manifest)


def test_stage_and_offload_are_the_machine_s_business(make_config: Make) -> None:
    receipts = [
        run_receipt(config, read_manifest(config.dataset))
        for config in (
            make_config(strategy="deepspeed", deepspeed={"stage": 2}),
            make_config(strategy="deepspeed", deepspeed={"stage": 3, "offload": "optimizer"}),
        )
    ]
    assert receipts[0] == receipts[1]
