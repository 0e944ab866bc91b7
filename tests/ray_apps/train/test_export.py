import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

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


MEASURE = """
import sys, threading, time
from pathlib import Path
from ray_apps.train import export
from ray_apps import model_dir
from ray_apps.train.config import TrainConfig

def anonymous():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))

def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.001)

shard_bytes = 20_000_000
export.SHARD_BYTES = shard_bytes
model_dir.write_tensors.__defaults__ = (shard_bytes,)
config = TrainConfig.model_validate_json(sys.argv[1])
before, peak = anonymous(), [0]
threading.Thread(target=watch, daemon=True).start()
directory = export.export(config)
print(len(list(directory.glob("*.safetensors"))), (peak[0] - before) / shard_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is told by Linux")
def test_an_export_holds_about_a_shard(
    make_config: Make, process_group: None, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """A model of 9 shards: were it read whole, it would be 9 of them."""
    base = tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 10, "num_attention_heads": 4}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=True, **sizes)
    ).save_pretrained(base)
    tokenizer.save_pretrained(base)
    config = make_config(model=str(base), max_steps=1, global_batch_size=1)
    run_training(config, torch.device("cpu"), after_save=lambda measures: None)
    command = [sys.executable, "-c", MEASURE, config.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    num_shards, peak_shards = done.stdout.split()
    assert int(num_shards) >= 8
    assert float(peak_shards) < 2.5
