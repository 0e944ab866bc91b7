"""Models as they were published in 2023: Meta's parts, deltas in `.bin` shards with a slow tokenizer."""

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.ray_apps.weights import models

ROWS, COLUMNS, ALL = 0, 1, None
META = {
    "model.embed_tokens": ("tok_embeddings", COLUMNS),
    "lm_head": ("output", ROWS),
    "model.norm": ("norm", ALL),
    "self_attn.q_proj": ("attention.wq", ROWS),
    "self_attn.k_proj": ("attention.wk", ROWS),
    "self_attn.v_proj": ("attention.wv", ROWS),
    "self_attn.o_proj": ("attention.wo", COLUMNS),
    "mlp.gate_proj": ("feed_forward.w1", ROWS),
    "mlp.down_proj": ("feed_forward.w2", COLUMNS),
    "mlp.up_proj": ("feed_forward.w3", ROWS),
    "input_layernorm": ("attention_norm", ALL),
    "post_attention_layernorm": ("ffn_norm", ALL),
}
"""Meta's names, and along what its model divides a weight: a layer whose outputs are shared out by rows, one whose
inputs are by columns, and the embedding by columns too."""


def llama(num_key_value_heads: int = 8, *, seed: int = 0, vocab_size: int = 380) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=num_key_value_heads,
            vocab_size=vocab_size,
            rms_norm_eps=1e-5,
        )
    ).eval()


def write_meta(directory: Path, model: LlamaForCausalLM, num_parts: int, tokenizer: Path) -> None:
    """What Meta's trainer would have saved, one file for each of its devices."""
    directory.mkdir(parents=True)
    config = model.config
    freqs = ["rope.freqs"] if num_parts > 1 else [f"layers.{n}.attention.inner_attention.rope.freqs" for n in range(2)]
    parts: list[dict[str, torch.Tensor]] = [{name: torch.ones(2) for name in freqs} for _ in range(num_parts)]
    for name, tensor in model.state_dict().items():
        layer = name.split(".")[2] if name.startswith("model.layers.") else None
        inner = name.removesuffix(".weight")
        meta, axis = META[inner.removeprefix(f"model.layers.{layer}.") if layer else inner]
        if meta in ("attention.wq", "attention.wk"):
            heads = config.num_attention_heads if meta == "attention.wq" else config.num_key_value_heads
            rows, columns = tensor.shape
            tensor = tensor.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
        pieces = [tensor] * num_parts if axis is None else tensor.chunk(num_parts, dim=axis)
        for part, piece in zip(parts, pieces, strict=True):
            part[f"layers.{layer}.{meta}.weight" if layer else f"{meta}.weight"] = piece.clone()
    for number, part in enumerate(parts):
        torch.save(part, directory / f"consolidated.{number:02d}.pth")
    params = {"dim": 32, "n_layers": 2, "n_heads": 8, "norm_eps": 1e-5, "vocab_size": -1, "multiple_of": 16}
    if config.num_key_value_heads != 8:
        params["n_kv_heads"] = config.num_key_value_heads
    (directory / "params.json").write_text(json.dumps(params))
    (directory.parent / "tokenizer.model").write_bytes(tokenizer.read_bytes())


def write_hub(directory: Path, weights: models.Tensors, config: LlamaConfig, tokenizer: Path, form: str) -> str:
    """A directory of the hub of then: `form` of `models.write`, a slow tokenizer, no chat template.

    With more rows per token than the tokenizer has pieces: a `[PAD]` that was added.
    """
    models.write(directory, weights, form)
    config.save_pretrained(directory)
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "model_max_length": 2048, "add_bos_token": True, **specials}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    if config.vocab_size == 381:
        (directory / "added_tokens.json").write_text(json.dumps({"[PAD]": 380}))
        specials["pad_token"] = "[PAD]"
    content = {name: {"content": token, "normalized": True} for name, token in specials.items()}
    (directory / "special_tokens_map.json").write_text(json.dumps(content))
    (directory / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    return str(directory)
