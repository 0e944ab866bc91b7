"""Meta's original layout of a Llama: `params.json`, `consolidated.NN.pth` of model-parallel parts, `tokenizer.model`.

A part holds a slice of each weight: of rows where a layer's outputs were divided among devices, of columns where its
inputs were. Query and key rows lie in another order than in `transformers`: Meta rotates neighbouring numbers, it
rotates the two halves of a head (RoFormer, Su et al. 2021; both give the same attention).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from data_prep.errors import ModelError
from ray_apps.weights.tensor_files import Pickle, Spec

PARAMS = "params.json"
NAMES = {
    "tok_embeddings": ("model.embed_tokens", 1),
    "output": ("lm_head", 0),
    "norm": ("model.norm", None),
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "attention_norm": ("input_layernorm", None),
    "ffn_norm": ("post_attention_layernorm", None),
}
"""By Meta's name: that of `transformers`, and along what a part holds a slice: 0 rows, 1 columns, None has all."""
OUTSIDE = ("tok_embeddings", "norm", "output")
"""Those of `NAMES` that belong to no layer."""
COMPUTED = re.compile(r"(layers\.\d+\.attention\.inner_attention\.)?rope\.freqs")
CONTEXT, CONTEXT_2 = 2048, 4096
"""Tokens that Llama and Llama 2 were trained to read."""


class MetaLlama:
    """A directory in that layout.

    Raises:
        ModelError: a file or a part is missing, or what they hold does not fit together.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.params = _read_params(directory)
        self.parts = [Pickle(path) for path in _part_files(directory)]
        self.num_heads = self.params["n_heads"]
        self.num_key_value_heads = self.params.get("n_kv_heads") or self.num_heads
        self._names = dict(self._renamed())
        self.specs = {name: self._spec(meta) for name, meta in self._names.items()}
        self._check()

    def stream(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name, as in `transformers`, and value of each tensor, one in memory at a time."""
        for name, meta in self._names.items():
            yield name, self._permuted(meta, self._whole(meta))

    def config(self) -> dict[str, Any]:
        """The `config.json` of `transformers`."""
        eps = float(self.params["norm_eps"])
        vocab_size, hidden_size = self.specs["model.embed_tokens.weight"].shape
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden_size,
            "intermediate_size": self.specs["model.layers.0.mlp.gate_proj.weight"].shape[0],
            "num_hidden_layers": self.params["n_layers"],
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "hidden_act": "silu",
            "rms_norm_eps": eps,
            "vocab_size": vocab_size,
            "max_position_embeddings": self._context(),
            "rope_theta": float(self.params.get("rope_theta", 10000.0)),
            "tie_word_embeddings": False,
            "attention_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": self.specs["model.embed_tokens.weight"].dtype,
        }

    def _context(self) -> int:
        """Llama 2 was published in bf16, and its largest with fewer key-value heads; Llama in fp16."""
        is_second = (
            self.specs["model.embed_tokens.weight"].dtype == "bfloat16" or self.num_key_value_heads < self.num_heads
        )
        return CONTEXT_2 if is_second else CONTEXT

    def _check(self) -> None:
        """Hold names and shapes of all parts together against `params.json`."""
        layers = range(self.params["n_layers"])
        inner = [name for name in NAMES if name not in OUTSIDE]
        expected = {f"{name}.weight" for name in OUTSIDE}
        expected |= {f"layers.{layer}.{name}.weight" for layer in layers for name in inner}
        found = {meta for part in self.parts for meta in part.specs if not COMPUTED.fullmatch(meta)}
        for meta in sorted(expected ^ found):
            what = "the parts have no" if meta in expected else f"{PARAMS} has no place for"
            raise ModelError(f"{self.directory}: {what} {meta!r}")
        vocab_size, feed_forward = (
            self.specs["model.embed_tokens.weight"].shape[0],
            self.specs["model.layers.0.mlp.gate_proj.weight"].shape[0],
        )
        for name, meta in self._names.items():
            shape = self._expected_shape(_split(meta)[1], vocab_size, feed_forward)
            if self.specs[name].shape != shape:
                raise ModelError(
                    f"{self.directory}: {meta!r} of {len(self.parts)} parts together is {list(self.specs[name].shape)} "
                    f"instead of {list(shape)}: a part is missing, or is of another model"
                )

    def _expected_shape(self, inner: str, vocab_size: int, feed_forward: int) -> tuple[int, ...]:
        dim = self.params["dim"]
        key_values = dim // self.num_heads * self.num_key_value_heads
        return {
            "tok_embeddings": (vocab_size, dim),
            "output": (vocab_size, dim),
            "attention.wk": (key_values, dim),
            "attention.wv": (key_values, dim),
            "attention.wq": (dim, dim),
            "attention.wo": (dim, dim),
            "feed_forward.w1": (feed_forward, dim),
            "feed_forward.w3": (feed_forward, dim),
            "feed_forward.w2": (dim, feed_forward),
        }.get(inner, (dim,))

    def _renamed(self) -> Iterator[tuple[str, str]]:
        for meta in self.parts[0].specs:
            if COMPUTED.fullmatch(meta):
                continue
            layer, inner = _split(meta)
            if inner not in NAMES:
                raise ModelError(f"{self.directory}: {meta!r} is no tensor of a Llama")
            yield f"{layer.replace('layers', 'model.layers')}{NAMES[inner][0]}.weight", meta

    def _holders(self, meta: str) -> list[Pickle]:
        """The parts that have a slice of it, or the first of those that have all."""
        if NAMES[_split(meta)[1]][1] is None:
            return self.parts[:1]
        if missing := [number for number, part in enumerate(self.parts) if meta not in part.specs]:
            raise ModelError(f"{self.directory}: part {missing[0]} has no {meta!r}")
        return self.parts

    def _spec(self, meta: str) -> Spec:
        pieces, axis = [part.specs[meta] for part in self._holders(meta)], NAMES[_split(meta)[1]][1]
        first = pieces[0]
        for number, piece in enumerate(pieces):
            is_alike = piece.dtype == first.dtype and len(piece.shape) == len(first.shape) == (1 if axis is None else 2)
            if not is_alike or (axis is not None and piece.shape[1 - axis] != first.shape[1 - axis]):
                raise ModelError(f"{self.directory}: {meta!r} of part {number} is {piece}, that of part 0 {first}")
        shape = list(first.shape)
        if axis is not None:
            shape[axis] = sum(piece.shape[axis] for piece in pieces)
        return Spec(first.dtype, tuple(shape))

    def _whole(self, meta: str) -> torch.Tensor:
        pieces, axis = [part.read(meta) for part in self._holders(meta)], NAMES[_split(meta)[1]][1]
        return pieces[0] if axis is None or len(pieces) == 1 else torch.cat(pieces, dim=axis)

    def _permuted(self, meta: str, tensor: torch.Tensor) -> torch.Tensor:
        heads = {"attention.wq": self.num_heads, "attention.wk": self.num_key_value_heads}.get(_split(meta)[1])
        if heads is None:
            return tensor
        rows, columns = tensor.shape
        return tensor.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _split(meta: str) -> tuple[str, str]:
    """`layers.3.` or nothing, and the name within a layer."""
    found = re.fullmatch(r"(layers\.\d+\.)?(.+)\.weight", meta)
    return (found[1] or "", found[2]) if found else ("", meta)


def _read_params(directory: Path) -> dict[str, Any]:
    path = directory / PARAMS
    try:
        params = dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ModelError(f"{directory}: there is no {PARAMS}; expected Meta's original files of a Llama") from None
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: {error}") from None
    for name in ("dim", "n_heads", "n_layers", "norm_eps"):
        if name not in params:
            raise ModelError(f"{path}: {name} is missing")
    for name in ("dim", "n_heads", "n_layers", "n_kv_heads"):
        if params.get(name) is not None and not (isinstance(params[name], int) and params[name] > 0):
            raise ModelError(f"{path}: {name}: {params[name]!r} is not valid; expected a number above 0")
    for name in ("norm_eps", "rope_theta"):
        if not isinstance(params.get(name, 1.0), int | float):
            raise ModelError(f"{path}: {name}: {params[name]!r} is not valid; expected a number")
    if params["dim"] % params["n_heads"] or params["n_heads"] % (params.get("n_kv_heads") or 1):
        raise ModelError(f"{path}: n_heads: {params['n_heads']} does not divide dim, or n_kv_heads does not divide it")
    return params


def _part_files(directory: Path) -> list[Path]:
    found = sorted(directory.glob("consolidated.*.pth"))
    expected = [directory / f"consolidated.{number:02d}.pth" for number in range(max(1, len(found)))]
    if found != expected:
        missing = next(path.name for path in expected if path not in found)
        raise ModelError(f"{directory}: {missing} is not there")
    return found
