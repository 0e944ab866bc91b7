"""The model on a cache of slots: one forward pass over the tokens of many sequences."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from data_prep.errors import ConfigError
from ray_apps.engine.native.adapters import AdapterHooks
from ray_apps.engine.native.attention import UnsupportedAttentionError, unsupported, use_slots
from ray_apps.engine.native.cache import Pass, Segment, SlotCache
from ray_apps.machine import free_memory

logger = logging.getLogger(__name__)


_SHARE = 0.8
"""Of the free memory, for keys and values; passes and answers need some too."""


def fitting_slots(model: PreTrainedModel, wanted: int, max_len: int) -> int:
    """`wanted` slots, or as many as the free memory has room for when all of them are full.

    Raises:
        ModelError: as `layers_by_device`.
        ConfigError: there is no room for a single one; naming the field and what would be valid.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layer_bytes: int = 2 * heads * size * model.dtype.itemsize
    # Shards on a CPU share its memory; on GPUs each has its own, and holds its own heads alone.
    shards = (getattr(model, "tp_size", None) or 1) if model.device.type == "cuda" else 1
    room = min(
        int(_SHARE * free_memory(device) / (count * layer_bytes / shards))
        for device, count in layers_by_device(model).items()
    )
    if room < max_len:
        taken = max_len * config.num_hidden_layers * layer_bytes / 1e9
        raise ConfigError(
            f"args.max_model_len: {max_len} tokens take {taken:.1f} GB for each request; valid here: up to {room}"
        )
    fitting = min(wanted, room // max_len)
    if fitting < wanted:
        logger.warning("there is memory for %d requests of %d tokens at a time, not %d", fitting, max_len, wanted)
    return fitting


def layers_by_device(model: PreTrainedModel) -> Counter[torch.device]:
    """How many layers of the decoder are worked on by each device.

    Raises:
        ModelError: it has no list of them.
    """
    lists = [module for module in model.get_decoder().modules() if isinstance(module, torch.nn.ModuleList)]
    if not lists:
        raise unsupported(model.config, "it has no list of layers")
    num_layers = model.config.get_text_config().num_hidden_layers
    layers = max(lists, key=lambda layers: len(layers) == num_layers)  # the first that is so long
    devices = [next(layer.parameters()).device for layer in layers]
    return Counter(model.device if device.type == "meta" else device for device in devices)


class LostModelError(RuntimeError):
    """The model will not make another pass in this process."""


class SlotModel:
    """An unmodified model of transformers whose attention goes to the slots of a cache.

    Raises:
        ModelError: its attention cannot.
    """

    def __init__(self, model: PreTrainedModel, num_slots: int, max_len: int) -> None:
        use_slots(model)
        self._model = model
        self._hidden: Tensor | None = None
        self._adapters = AdapterHooks(model)
        model.get_decoder().register_forward_hook(self._keep_hidden)
        self.cache = SlotCache(model.config.get_text_config().num_hidden_layers, num_slots, max_len)

    @property
    def device(self) -> torch.device:
        """Where the tokens go in."""
        return self._model.device

    def try_out(self) -> None:
        """Make a pass of one token, before the first of any request: no slot holds it.

        Raises:
            ModelError: the model cannot be read on slots as it reads by itself.
        """
        config = self._model.config
        try:
            self._pass([Segment(0, 0, 1)], [0], [0]).argmax().item()  # On a GPU a failure is told by what waits for it.
        except UnsupportedAttentionError as error:
            raise unsupported(config, str(error)) from None
        except (TypeError, AttributeError, NotImplementedError, ValueError, LookupError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise unsupported(config, f"a pass fails: {type(error).__name__}: {reason}") from error
        if not self.cache.is_in_use:
            raise unsupported(config, "its layers keep no keys and values here")

    def forward(self, segments: Sequence[Segment], token_ids: Sequence[int], chosen: Sequence[int]) -> Tensor:
        """Read the segments' tokens, one segment after another; the logits `[chosen, vocabulary]` after some of them.

        `chosen`: indices into `token_ids`.
        """
        return self._pass(segments, token_ids, chosen)

    @torch.inference_mode()
    def _pass(self, segments: Sequence[Segment], token_ids: Sequence[int], chosen: Sequence[int]) -> Tensor:
        current = Pass(segments, self.device, self._model.dtype)
        self.cache.current = current
        self._adapters.select(segments, self.device)
        output = self._model(
            input_ids=torch.tensor([list(token_ids)], device=self.device),
            position_ids=current.positions[None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=torch.tensor(list(chosen), dtype=torch.long, device=self.device),
            current=current,
        )
        logits: Tensor = output.logits[0]
        return logits

    def _keep_hidden(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._hidden = output[0]

    @property
    def hidden(self) -> Tensor:
        """The last hidden states `[tokens, size]` of the pass before."""
        assert self._hidden is not None
        return self._hidden[0]

    def check(self) -> None:
        """Return if the model can make a pass.

        Raises:
            LostModelError: it cannot, and never will.
        """

    def close(self) -> None:
        """Give back what is outside of this process."""

    @torch.inference_mode()
    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Give slot `target` the first tokens of slot `source`."""
        self.cache.copy(source, target, num_tokens)


MakeModel = Callable[[PreTrainedModel, int, int], SlotModel]
"""Gives a model a number of slots, each with room for so many tokens."""
