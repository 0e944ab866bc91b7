"""LoRA adapters (Hu et al. 2021) of one model, served together: every token of a pass goes through its own request's.

An adapter is a directory as peft writes it. What it adds to a linear layer is worked out for the tokens of its requests
alone, so that those of others stay what they are.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from data_prep.errors import ModelError
from ray_apps.engine.native.cache import Segment
from ray_apps.engine.protocol import UnsupportedError
from ray_apps.lora import CONFIG, WEIGHTS, scale_of

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_WITHOUT = {
    "use_dora": "DoRA",
    "modules_to_save": "modules_to_save",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "layers_to_transform": "layers_to_transform",
}


@dataclass(frozen=True, eq=False)
class Adapter:
    """`deltas`: by the name of a linear layer, `[rank, inputs]` and `[outputs, rank]`, the latter with its scale.

    `key`: of what is in the cache, that which was read through this one.
    """

    name: str
    deltas: Mapping[str, tuple[Tensor, Tensor]]
    key: object = field(default_factory=object)


def read_adapter(name: str, directory: Path, model: PreTrainedModel) -> Adapter:
    """Load the adapter in `directory` for `model`.

    Raises:
        ModelError: it is none, is for another model, lacks tensors, or has what is not served; naming it.
    """
    layers, scale = check_adapter(name, directory, model)
    deltas = {}
    with safe_open(_weights(directory), framework="pt") as file:
        for layer in layers:
            down, up = (file.get_tensor(f"base_model.model.{layer}.lora_{side}.weight") for side in "AB")
            like = model.get_submodule(layer).weight.device, model.dtype
            deltas[layer] = down.to(*like), (up.float() * scale).to(*like)
    return Adapter(name, deltas)


def check_adapter(name: str, directory: Path, model: PreTrainedModel) -> tuple[list[str], float]:
    """The linear layers that the adapter in `directory` changes, and its scale. Only headers of files are read.

    Raises:
        ModelError: as `read_adapter`.
    """
    try:
        config = json.loads((directory / CONFIG).read_text())
        with safe_open(_weights(directory), framework="pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
        scale = _scale(config)
        layers = _layers(shapes, int(config["r"]), model)
        _check_complete(layers, model)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        missing = isinstance(error, KeyError)
        reason = f"{CONFIG} has no {error}" if missing else str(error).strip().partition("\n")[0]
        raise ModelError(f"args.adapters.{name}: {str(directory)!r}: {reason}") from None
    return layers, scale


def _weights(directory: Path) -> Path:
    return directory / WEIGHTS


def _scale(config: dict[str, Any]) -> float:
    """What the product of both matrices is multiplied with. Raises ValueError for what is not served."""
    kind = config["peft_type"]
    if kind != "LORA":
        raise ValueError(f"it is a {kind} adapter; valid: LORA")
    refused = [said for field, said in _WITHOUT.items() if config.get(field)]
    if config.get("bias", "none") != "none":
        refused.append("bias")
    if refused:
        raise ValueError(f"it has {refused[0]}, which is not served; valid: plain LoRA of linear layers")
    return scale_of(config)


def _layers(shapes: Mapping[str, tuple[int, ...]], rank: int, model: PreTrainedModel) -> list[str]:
    """The layers of which there are tensors. Raises ValueError where those are not for `model`."""
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    layers: dict[str, set[str]] = {}
    for key, shape in shapes.items():
        match = _TENSOR.fullmatch(key)
        module = modules.get(match["module"]) if match else None
        if match is None or not isinstance(module, torch.nn.Linear) or module is head:
            raise ValueError(f"tensor {key} belongs to no linear layer of the model's decoder")
        size = (rank, module.in_features) if match["side"] == "A" else (module.out_features, rank)
        if shape != size:
            raise ValueError(f"tensor {key} is {list(shape)} instead of {list(size)}: it is of another model")
        layers.setdefault(match["module"], set()).add(match["side"])
    for layer, sides in layers.items():
        if missing := {"A", "B"} - sides:
            raise ValueError(f"tensor base_model.model.{layer}.lora_{missing.pop()}.weight is missing")
    return list(layers)


def _check_complete(layers: Sequence[str], model: PreTrainedModel) -> None:
    """Raise ValueError unless every layer of the decoder that has such a module has its adapter."""
    if not layers:
        raise ValueError("it has no tensors")
    kinds = {_kind(layer) for layer in layers}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and _kind(name) in kinds and name not in layers:
            raise ValueError(f"tensor base_model.model.{name}.lora_A.weight is missing")


def _kind(layer: str) -> str:
    """Its name without the number of its layer."""
    return re.sub(r"\.\d+\.", ".*.", layer)


class Adapters:
    """The adapters of `model`, from `directories` by name; `most` of them are held at a time, those used last.

    All are checked at once. Safe to use from any thread.

    Raises:
        ModelError: as `read_adapter`.
    """

    def __init__(self, model: PreTrainedModel, directories: Mapping[str, str], most: int) -> None:
        self._model = model
        self._directories = {name: Path(directory).expanduser() for name, directory in directories.items()}
        self._most = most
        self._held: OrderedDict[str, Adapter] = OrderedDict()
        self._lock = threading.Lock()
        for name, directory in self._directories.items():
            check_adapter(name, directory, model)

    @property
    def held(self) -> list[str]:
        """Names of those in memory, the one used last at the end."""
        return list(self._held)

    def get(self, name: str) -> Adapter:
        """The adapter called `name`, loaded if it has to be. One that is given up stays with requests under way.

        Raises:
            UnsupportedError: there is none of that name.
            ModelError: its files are no longer what they were.
        """
        if name not in self._directories:
            raise UnsupportedError(f"there is no adapter {name!r}; valid: {', '.join(self._directories) or 'none'}")
        with self._lock:
            adapter = self._held.get(name) or read_adapter(name, self._directories[name], self._model)
            self._held[name] = adapter
            self._held.move_to_end(name)
            if len(self._held) > self._most:
                self._held.popitem(last=False)
        return adapter


class AdapterHooks:
    """Adds what adapters add, at the linear layers of `model`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._modules = dict(model.named_modules())
        self._hooked: set[str] = set()
        self._rows: list[tuple[Adapter, Tensor]] = []

    def select(self, segments: Sequence[Segment], device: torch.device) -> None:
        """Say which segments the next pass has, one after another."""
        rows: dict[Adapter, list[int]] = {}
        first = 0
        for segment in segments:
            if segment.adapter is not None:
                rows.setdefault(segment.adapter, []).extend(range(first, first + segment.count))
            first += segment.count
        self._rows = [(adapter, torch.tensor(numbers, device=device)) for adapter, numbers in rows.items()]
        for adapter in rows:
            for name in adapter.deltas.keys() - self._hooked:
                self._hook(name)

    def _hook(self, name: str) -> None:
        def add(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            for adapter, rows in self._rows:
                if name in adapter.deltas:
                    down, up = adapter.deltas[name]
                    own = rows.to(output.device)
                    output[0].index_add_(0, own, args[0][0, own] @ down.T @ up.T)

        self._modules[name].register_forward_hook(add)
        self._hooked.add(name)
