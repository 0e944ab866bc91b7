"""A GGUF file as an ordinary model directory."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from data_prep.storage import written_aside
from ray_apps.model_dir import ORIGIN, write_tensors


def convert_gguf(file: Path, output: Path) -> None:
    """Write the weights of `file`, dequantised to bfloat16, and its tokenizer to the model directory `output`."""
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    model.config.architectures = [type(model).__name__]  # a GGUF does not say; vLLM and `transformers serve` ask for it
    with written_aside(output) as directory:
        write_tensors(directory, model.named_parameters())  # of tied weights only one is a parameter
        model.config.save_pretrained(directory)
        model.generation_config.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        (directory / ORIGIN).write_text(json.dumps({"gguf": file.name}) + "\n")
