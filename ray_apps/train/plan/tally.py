"""How many bytes one decoder layer and the loss hold, found by running them on tensors without data.

The training code itself runs, one layer of it, forwards and backwards, on fake tensors (meta tensors that know which
device they stand for): a layer of a 70B model takes a fraction of a second. A dispatch mode sees each come and go.
Nothing about the layer's algebra is assumed here, and a layer with other norms, heads or adapters is counted as it is.

What a Llama layer keeps without checkpoints, for each token: the input of either norm in fp32 (hidden), normed, and
times its weight; rotated queries, keys and values; attention's output, its log-sum-exp (heads, fp32), the output
once more in the order that the output projection takes; gate, up, SiLU of gate, and their product (intermediate).

Not seen: memory that a kernel takes and gives back within one operator.
"""

import copy
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ray_apps.train.adapters import add_lora, check_targets
from ray_apps.train.attention import choose_attention
from ray_apps.train.config import TrainConfig
from ray_apps.train.objective import chunked_loss
from ray_apps.train.strategies.prepare import checkpoint_layers, compute_dtype


class Tally(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on: those alive now, and the most at any time.

    `known`: tensors that are there before and count for nothing, nor do views of them.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._sizes:
            return
        self._sizes[storage._cdata] = storage.nbytes()
        self.live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, address: int) -> None:
        self.live_bytes -= self._sizes.pop(address)


@dataclass(frozen=True)
class Footprint:
    """Bytes of one part of the model, its weights not counted.

    `kept_bytes`: what the forward pass leaves for the backward pass: with the part's input if that is needed again,
    without its output. `peak_bytes`: the most at any time of both passes, with the gradients of the part's weights.
    """

    kept_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Anatomy:
    """Numbers of weights, and footprints of one micro-batch. The root is all that is in no decoder layer."""

    num_layers: int
    layer_parameters: int
    layer_trainable: int
    root_parameters: int
    root_trainable: int
    output_trainable: int
    """Trainable weights of the output layer, whether or not it is the input embedding too."""
    output_parameters: int
    attention_width: int
    """Heads × size of a head."""
    input_bytes: int
    """The input of a layer: `[1, tokens, hidden]` in the compute type."""
    positions_bytes: int
    """Sines and cosines, which all layers share, and the batch itself."""
    layer: Footprint
    head: Footprint
    """The last norm and the loss, every token trained on."""

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.num_layers * self.layer_parameters + self.root_parameters

    @property
    def trainable(self) -> int:
        """Weights that are trained."""
        return self.num_layers * self.layer_trainable + self.root_trainable


def dissect(model_config: PreTrainedConfig, config: TrainConfig, tokens: int) -> Anatomy:
    """Build one layer of the model without memory and run a micro-batch of `tokens` tokens through it.

    Raises:
        ConfigError: `lora` names a layer that the model lacks.
    """
    model = one_layer_model(model_config)
    if config.lora is not None:
        check_targets(model, config.lora)
        add_lora(model, config.lora)
    checkpoint_layers(model, config)
    with FakeTensorMode():
        _make_fake(model.train(), compute_dtype(config))
        layer, output = _layer(model), model.get_output_embeddings().weight
        runs = _Runs(model, tokens)
        return Anatomy(
            num_layers=model_config.get_text_config().num_hidden_layers,
            layer_parameters=_total(layer),
            layer_trainable=_total(layer, trainable=True),
            root_parameters=_total(model) - _total(layer),
            root_trainable=_total(model, trainable=True) - _total(layer, trainable=True),
            output_trainable=_num(output) if output.requires_grad else 0,
            output_parameters=_num(output),
            attention_width=attention_width(model_config),
            input_bytes=_num_bytes(runs.hidden),
            positions_bytes=sum(map(_num_bytes, (*runs.rotations, *runs.batch))),
            layer=runs.layer(),
            head=runs.head(),
        )


def one_layer_model(model_config: PreTrainedConfig) -> Any:
    """The model on the `meta` device, where tensors have no memory, with one decoder layer only: all are alike."""
    settings = copy.deepcopy(model_config)
    text: Any = settings.get_text_config()
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    attention = choose_attention("sdpa", torch.device("cpu"))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(settings, attn_implementation=attention, trust_remote_code=False)


def attention_width(model_config: PreTrainedConfig) -> int:
    """Heads × size of a head."""
    text: Any = model_config.get_text_config()
    head_dim: int = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return head_dim * int(text.num_attention_heads)


def _layer(model: PreTrainedModel) -> nn.Module:
    base: Any = model.base_model
    layer: nn.Module = base.layers[0]
    return layer


def _make_fake(model: nn.Module, dtype: torch.dtype) -> None:
    """Put fake tensors in the place of meta ones; weights in the compute type, in which FSDP hands all of them out."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(weight) not in made:  # a tied weight stays one
                fake = torch.empty(weight.shape, dtype=dtype)
                made[id(weight)] = nn.Parameter(fake, requires_grad=weight.requires_grad)
            setattr(module, name, made[id(weight)])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _total(module: nn.Module, *, trainable: bool = False) -> int:
    return sum(_num(weight) for weight in module.parameters() if weight.requires_grad or not trainable)


def _num(tensor: torch.Tensor) -> int:
    return tensor.numel()


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _Runs:
    """One micro-batch of fake tensors, and what it runs through."""

    def __init__(self, model: Any, tokens: int) -> None:
        self.model = model
        weight = model.get_output_embeddings().weight
        self.hidden = torch.empty(1, tokens, weight.shape[1], dtype=weight.dtype, requires_grad=True)
        self.position_ids = torch.arange(tokens)[None]
        self.targets, self.weights = torch.zeros(tokens, dtype=torch.int64), torch.ones(tokens)
        self.trained = torch.arange(tokens)
        self.batch = (self.position_ids, self.position_ids, self.targets, self.weights)  # the first: input_ids
        self.rotations = self.model.base_model.rotary_emb(self.hidden, self.position_ids)

    def layer(self) -> Footprint:
        """One decoder layer; the gradient of its output is made within the backward pass, and freed there."""

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            result: Any = self.model.base_model.layers[0](
                hidden, attention_mask=None, position_ids=self.position_ids, position_embeddings=self.rotations
            )
            return result if isinstance(result, torch.Tensor) else result[0]

        return self._run(forward)

    def head(self) -> Footprint:
        """The last norm, the output layer and the loss."""

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            normed: torch.Tensor = self.model.base_model.norm(hidden)
            return chunked_loss(normed[0], self.model.lm_head, self.targets, self.weights, self.trained)

        return self._run(forward)

    def _run(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> Footprint:
        one = torch.ones((), dtype=self.hidden.dtype)
        known = [*self.model.parameters(), *self.rotations, *self.batch, self.hidden, self.trained, one]
        with Tally(known) as tally:
            result = forward(self.hidden * one)  # nothing here holds the input: it stays if the pass back needs it
            kept_bytes = tally.live_bytes - _num_bytes(result)
            total = (result * one).sum()
            del result
            total.backward()
        self.model.zero_grad()
        self.hidden.grad = None
        return Footprint(kept_bytes, tally.peak_bytes)
