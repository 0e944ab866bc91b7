"""Adapters of LoRA, added to their base for good."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from data_prep.errors import ModelError
from data_prep.storage import local_model
from ray_apps.lora import CONFIG, WEIGHTS, merged, scale_of
from ray_apps.weights.tensor_files import FILES, Spec, TensorFiles, read_whole

PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."
MATRIX = re.compile(r"(?P<layer>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
EMBEDDING = re.compile(r"(^|\.)embed_tokens(\.weight)?$")
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Ways to begin that take something out of the base; what is added belongs to what was left."""
REFUSED = {
    "use_dora": "DoRA",
    "alora_invocation_tokens": "aLoRA",
    "layer_replication": "layer_replication",
    "use_qalora": "QA-LoRA",
}


class LoraAdapter:
    """A directory of peft's: matrices for linear layers and embeddings, and weights that take the place of the base's.

    `model`: a directory, an `s3://` path or a hub id.

    Raises:
        ModelError: it is none, is not whole, or is of a kind that is not merged.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.directory = local_model(model, FILES, marker=CONFIG)
        self._config = self._read_config()
        self._whole: dict[str, torch.Tensor] = {}
        self._matrices: dict[str, dict[str, torch.Tensor]] = {}
        self._embeddings: set[str] = set()
        for key, tensor in read_whole(self._file()).items():
            self._sort(key, tensor)
        if not self._whole and not self._matrices:
            raise self._error("it has no tensors")
        for layer, sides in self._matrices.items():
            if missing := sorted({"A", "B"} - sides.keys()):
                raise self._error(f"{layer} has no lora_{missing[0]}")
            if (rank := self._rank(layer)) != len(sides["A"]):
                raise self._error(f"{layer} is of rank {len(sides['A'])}, where {CONFIG} says {rank:g}")

    def check(self, base: TensorFiles) -> None:
        """Hold its names and shapes against those of `base`.

        Raises:
            ModelError: it is not for that base; lists the differences.
        """
        found = [line for layer in self._matrices if (line := self._misfit(layer, base.specs))]
        found += [
            f"{name}: {list(tensor.shape)}, in the base {base.specs.get(name, 'missing')}"
            for name, tensor in self._whole.items()
            if name not in base.specs or base.specs[name].shape != tuple(tensor.shape)
        ]
        changed = [name for name in (*self._whole, *self._matrices) if EMBEDDING.search(name)]
        if changed and not any(name.endswith("lm_head.weight") for name in base.specs):
            found.append(f"{changed[0]}: it is the head of the base too, which the adapter was not trained for")
        if found:
            raise self._error("\n".join([f"it does not belong to base {str(base.directory)!r}:", *found]))

    def merge(self, base: TensorFiles) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of each tensor of `base`, with what the adapter adds, one in memory at a time."""
        for name, tensor in base.stream():
            layer = name.removesuffix(".weight")
            weight = self._whole.get(name, tensor).to(tensor.dtype)
            yield name, merged(weight, *self._pair(layer), self._scale(layer)) if layer in self._matrices else weight

    def _file(self) -> Path:
        found = [path for name in (WEIGHTS, PICKLED) if (path := self.directory / name).is_file()]
        if not found:
            raise self._error(f"it has neither {WEIGHTS} nor {PICKLED}")
        return found[0]

    def _read_config(self) -> dict[str, Any]:
        try:
            config = dict(json.loads((self.directory / CONFIG).read_text()))
            kind = config["peft_type"]
            scale_of(config)
        except KeyError as error:
            raise self._error(f"{CONFIG} has no {error}") from None
        except (OSError, ValueError, TypeError, ZeroDivisionError) as error:
            raise self._error(f"{CONFIG}: {error}") from None
        if str(config.get("init_lora_weights")).startswith(CHANGES_BASE):
            raise self._error(f"it began with a changed base ({config['init_lora_weights']}), which is not merged")
        for field in ("rank_pattern", "alpha_pattern"):
            _check_pattern(field, config.get(field) or {}, self._error)
        if kind != "LORA":
            raise self._error(f"it is a {kind} adapter; valid: LORA")
        if refused := [said for field, said in REFUSED.items() if config.get(field)]:
            raise self._error(f"{refused[0]} is not merged; valid: LoRA, rsLoRA, patterns of ranks, modules_to_save")
        return config

    def _sort(self, key: str, tensor: torch.Tensor) -> None:
        name = key.removeprefix(PREFIX)
        if match := MATRIX.fullmatch(name):
            # An embedding's matrices are those of its transpose.
            side = match["side"] if not match["embedding"] else {"A": "B", "B": "A"}[match["side"]]
            self._matrices.setdefault(match["layer"], {})[side] = tensor.T if match["embedding"] else tensor
            if match["embedding"]:
                self._embeddings.add(match["layer"])
        elif "lora_" in name or not key.startswith(PREFIX):
            raise self._error(f"tensor {key} is of a kind that is not merged")
        else:
            self._whole[name.replace(".base_layer.", ".")] = tensor

    def _pair(self, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        down, up = self._matrices[layer]["A"], self._matrices[layer]["B"]
        is_transposed = self._config.get("fan_in_fan_out") and layer not in self._embeddings
        return (up.T, down.T) if is_transposed else (down, up)

    def _misfit(self, layer: str, specs: Mapping[str, Spec]) -> str | None:
        down, up = self._pair(layer)
        if (spec := specs.get(f"{layer}.weight")) is None:
            return f"{layer}.weight: missing in the base"
        if down.dim() != 2 or up.dim() != 2 or up.shape[1] != len(down) or spec.shape != (len(up), down.shape[1]):
            return f"{layer}: {list(up.shape)} × {list(down.shape)} for {list(spec.shape)} in the base"
        if not spec.torch_dtype.is_floating_point:
            return f"{layer}.weight: {spec.dtype} in the base, which is quantised"
        return None

    def _rank(self, layer: str) -> float:
        return self._pattern("rank_pattern", layer) or float(self._config["r"])

    def _scale(self, layer: str) -> float:
        return scale_of(self._config, self._rank(layer), self._pattern("alpha_pattern", layer))

    def _pattern(self, field: str, layer: str) -> float | None:
        for pattern, value in (self._config.get(field) or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", layer):
                return float(value)
        return None

    def _error(self, reason: str) -> ModelError:
        return ModelError(f"adapter {self.model!r}: {reason}")


def _check_pattern(field: str, patterns: Any, error: Callable[[str], ModelError]) -> None:
    """Return if it maps regular expressions to numbers above 0."""
    if not isinstance(patterns, dict):
        raise error(f"{CONFIG}: {field}: expected a mapping of patterns to numbers")
    for pattern, value in patterns.items():
        if not isinstance(value, int | float) or value <= 0:
            raise error(f"{CONFIG}: {field}: {pattern}: {value!r} is not valid; expected a number above 0")
        try:
            re.compile(pattern)
        except re.error as problem:
            raise error(f"{CONFIG}: {field}: {pattern!r} is no pattern: {problem}") from None
