"""What an architecture does besides what every decoder does, found out by running it without its weights.

The loss takes the output layer's values as they are, and packed chats are kept apart by attention alone. Architectures
that scale their logits, or mix tokens in another way, would be trained on something else without a word.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ray_apps.train.plan.tally import one_layer_model

_RECORDING = "recording"


class _Output(SimpleNamespace):
    """What a model's body gives back; of whatever else is asked for there is nothing."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def changes_logits(model: PreTrainedModel) -> bool:
    """Whether the model's own forward pass makes something else of the output layer's values, or of what goes in there.

    `model` is on the `meta` device. Its last steps are run with a known hidden state and an output layer that passes it
    on.
    """
    causal_lm: Any = model
    hidden = torch.linspace(-99, 99, model.config.get_text_config().hidden_size).reshape(1, 1, -1)
    output = _Output(last_hidden_state=hidden)
    with _replaced(causal_lm.base_model, lambda *args, **kwargs: output), _replaced(causal_lm.lm_head, _passed_on):
        try:
            logits = causal_lm(input_ids=torch.zeros(1, 1, dtype=torch.long)).logits
        except (AttributeError, TypeError, RuntimeError):
            return True
    return not torch.equal(logits, hidden)


def _passed_on(hidden: Tensor) -> Tensor:
    return hidden


@contextmanager
def _replaced(module: Any, forward: Any) -> Iterator[None]:
    before, module.forward = module.forward, forward
    try:
        yield
    finally:
        module.forward = before


def mixes_chats(model: PreTrainedModel) -> str | None:
    """How the layers of `model`, on the `meta` device, could let packed chats see each other; None if they do not.

    Attention is replaced by one that notes whether it was told the chats' borders.
    """
    calls: list[str | None] = []

    def note(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **told: Any
    ) -> tuple[Tensor, None]:
        if told.get("cu_seq_lens_q") is None:
            calls.append("do not tell attention where chats end")
        else:
            calls.append("need a mask" if attention_mask is not None else None)
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    body: Any = model.base_model
    if any(isinstance(module, nn.Conv1d) for module in body.layers.modules()):
        return "have convolutions"
    AttentionInterface.register(_RECORDING, note)
    AttentionMaskInterface.register(_RECORDING, lambda *args, **kwargs: None)
    model.set_attn_implementation(_RECORDING)
    ids = torch.zeros(1, 4, dtype=torch.long, device=model.device)
    borders = torch.zeros(3, dtype=torch.int32, device=model.device)
    told = {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": 2, "max_length_k": 2}
    _fix_rotations(model)
    try:
        mask = torch.ones(1, 4, dtype=torch.long)  # with data: some look whether a token is masked
        body(input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False, **told)
    except Exception as error:
        if isinstance(error, NotImplementedError) and not calls and model.device.type == "meta":
            # What attends is chosen by the data: one layer is run with what its memory holds.
            return mixes_chats(one_layer_model(model.config).to_empty(device="cpu"))
        if not calls or not isinstance(error, RuntimeError | ValueError):
            return f"cannot be run ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
        # Some cannot run to the end without data; then what they did until there is all there is to judge by.
    else:
        if len(calls) < len(body.layers):
            return "have tokens mixed by something else than attention"
    return next((found for found in calls if found is not None), None)


def _fix_rotations(model: PreTrainedModel) -> None:
    """Have those of any length be those of the context, so that none looks at how long its data is."""
    module: Any
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, dict):
            module.rope_type = {layers: _fixed(kind) for layers, kind in kinds.items()}
        elif isinstance(kinds, str):
            module.rope_type = _fixed(kinds)


def _fixed(kind: str) -> str:
    return "default" if "dynamic" in kind else kind
