"""Keys and values of many sequences side by side, `[slots, heads, tokens, size]` a layer, for transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

if TYPE_CHECKING:
    from ray_apps.engine.native.adapters import Adapter

_CALL_TOKENS = 150
"""What a call of attention costs on a CPU, in tokens that it could attend to in that time."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of one sequence that go through the model together: `count` of them from position `start` on.

    `adapter`: what they go through beside it.
    """

    slot: int
    start: int
    count: int
    adapter: "Adapter | None" = None

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.start + self.count


class Pass:
    """The segments of one forward pass, one after another in a row of tokens, and where each token belongs.

    Attention is called once for each of its `groups`: a segment, or single tokens of slots side by side, padded to the
    longest.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device, dtype: torch.dtype) -> None:
        slots = [segment.slot for segment in segments for _ in range(segment.count)]
        positions = [position for segment in segments for position in range(segment.start, segment.end)]
        self.positions = torch.tensor(positions, device=device)
        self.groups = group_segments(segments)
        self._dtype = dtype
        self._places = {device: (torch.tensor(slots, device=device), self.positions)}
        self._masks: dict[tuple[int, int | None, torch.device], Tensor | None] = {}

    def places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Slot and position of each token, for a layer on `device`."""
        if device not in self._places:
            slots, positions = next(iter(self._places.values()))
            self._places[device] = slots.to(device), positions.to(device)
        return self._places[device]

    def mask(self, number: int, window: int | None, device: torch.device) -> Tensor | None:
        """What is added to the scores of group `number`; None where nothing is hidden.

        `[slots, 1, 1, length]` of single tokens, `[count, length]` of a segment. A token may attend to itself and to
        what is before it, to `window` tokens in all.
        """
        key = number, window, device
        if key not in self._masks:
            group = self.groups[number]
            positions = [position for segment in group for position in range(segment.start, segment.end)]
            queries = torch.tensor(positions, device=device)[:, None]
            keys = torch.arange(max(segment.end for segment in group), device=device)
            hidden = keys > queries
            if window is not None:
                hidden |= keys <= queries - window
            mask = torch.zeros(hidden.shape, dtype=self._dtype, device=device).masked_fill(hidden, -torch.inf)
            shaped = mask if group[0].count > 1 else mask[:, None, None]
            self._masks[key] = shaped if hidden.any() else None
        return self._masks[key]


def group_segments(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments in their order, those of single tokens together where padding costs less than another call."""
    groups: list[list[Segment]] = []
    for is_single, run in groupby(segments, key=lambda segment: segment.count == 1):
        for segment in run:
            if is_single and groups and _is_worth_joining(groups[-1], segment):
                groups[-1].append(segment)
            else:
                groups.append([segment])
    return groups


def _is_worth_joining(group: list[Segment], segment: Segment) -> bool:
    if group[-1].count > 1 or segment.slot != group[-1].slot + 1:
        return False
    longest = max(one.end for one in group)
    joined = (len(group) + 1) * max(longest, segment.end)
    return joined <= len(group) * longest + segment.end + _CALL_TOKENS


class SlotLayer(CacheLayerMixin):
    """One layer. `update` writes the new keys and values where the pass says, and returns those of all slots."""

    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room, now that the shapes are known. On a CPU memory is taken as it is written to.

        Zeros, for what is masked takes part in sums with a weight of zero, and chance may have left a NaN there.
        """
        self.keys, self.values = (
            states.new_zeros(self._cache.num_slots, states.shape[1], self._cache.max_len, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take `[1, heads, tokens, size]` of the pass."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        slots, positions = self._cache.current.places(self.keys.device)
        self.keys[slots, :, positions] = key_states[0].transpose(0, 1)
        self.values[slots, :, positions] = value_states[0].transpose(0, 1)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Not asked for: attention over slots needs no mask of transformers'."""
        return self._cache.max_len, 0

    def get_seq_length(self) -> int:
        """Positions are given with each pass."""
        return 0

    def get_max_length(self) -> int:
        """Tokens of a slot."""
        return self._cache.max_len


class SlotCache(Cache):
    """`num_slots` sequences of up to `max_len` tokens in `num_layers` layers. `current`: the pass under way."""

    current: Pass

    def __init__(self, num_layers: int, num_slots: int, max_len: int) -> None:
        self.num_slots, self.max_len = num_slots, max_len
        self._slot_layers = [SlotLayer(self) for _ in range(num_layers)]
        super().__init__(layers=[*self._slot_layers])

    @property
    def num_tokens(self) -> int:
        """Tokens that all slots together have room for."""
        return self.num_slots * self.max_len

    @property
    def is_in_use(self) -> bool:
        """Whether layers have put keys and values into it."""
        return any(layer.is_initialized for layer in self._slot_layers)

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Give slot `target` the first tokens of slot `source`. Layers that use those of others have none."""
        for layer in self._slot_layers:
            for states in (layer.keys, layer.values) if layer.is_initialized else ():
                assert states is not None
                states[target, :, :num_tokens] = states[source, :, :num_tokens]
