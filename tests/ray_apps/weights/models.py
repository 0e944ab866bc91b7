"""Small model directories with their weights in every form in which people have them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


def tensors(seed: int, *, vocab: int = 32, dtype: torch.dtype = torch.float32) -> Tensors:
    """Those of a Llama with one layer, more or less."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (vocab, 8),
        "model.layers.0.self_attn.q_proj.weight": (8, 8),
        "model.layers.0.input_layernorm.weight": (8,),
        "model.norm.weight": (8,),
        "lm_head.weight": (vocab, 8),
    }
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write(directory: Path, weights: Tensors, form: str = "safetensors", name: str = "base") -> str:
    """A directory with the weights in a form: `safetensors` or `bin`, with `-shards` in two."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "of": name}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"of": name}))
    (directory / "tokenizer.model").write_bytes(name.encode())
    kind, _, shards = form.partition("-")
    names = sorted(weights)
    parts = [names[::2], names[1::2]] if shards else [names]
    stem = "model" if kind == "safetensors" else "pytorch_model"
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        file = f"{stem}-{number:05d}-of-00002.{kind}" if shards else f"{stem}.{kind}"
        held = {name: weights[name].clone() for name in part}
        if kind == "safetensors":
            save_file(held, directory / file, metadata={"format": "pt"})
        else:
            torch.save(held, directory / file)
        weight_map |= dict.fromkeys(part, file)
    if shards:
        (directory / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return str(directory)
