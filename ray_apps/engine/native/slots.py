"""Which slot of the cache holds which tokens, and which one a prompt gets. Bookkeeping only: no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

LEAST_COPIED = 16
"""Tokens that a prompt must have in common with a slot for copying them to be worth it."""


@dataclass
class Slot:
    """Room for one sequence. `tokens`: those whose keys and values it holds; they stay when it is free again.

    `kind`: what the model was read through, an adapter or nothing; it is another cache for each.
    """

    number: int
    tokens: list[int] = field(default_factory=list)
    kind: object = None
    is_busy: bool = False
    used_at: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a prompt goes: its first `num_cached` tokens are in `slot`, once they are copied from `copied_from`."""

    slot: int
    num_cached: int
    copied_from: int | None = None


class SlotTable:
    """Gives prompts to slots so that what is read already is not read again.

    A prompt that goes on where a free slot ends, as the next turn of a chat does, gets that slot. What another slot has
    in common with it, such as a system prompt, is copied. Otherwise the slot is taken that was free for longest.
    """

    def __init__(self, num_slots: int) -> None:
        self._slots = [Slot(number) for number in range(num_slots)]
        self._time = 0

    @property
    def num_free(self) -> int:
        """Slots that a prompt can get."""
        return sum(not slot.is_busy for slot in self._slots)

    def place(self, prompt_ids: Sequence[int], *, reuse: bool = True, kind: object = None) -> Placement | None:
        """Take a slot for a prompt; None while all are busy. At least the last token is left to be read.

        Without `reuse` all of it is. Only what was read through the same `kind` is reused.
        """
        free = [slot for slot in self._slots if not slot.is_busy]
        if not free:
            return None
        oldest = min(free, key=lambda slot: (slot.used_at, slot.number))
        if not reuse:
            return self._take(oldest, kind, [], None)
        prompt = list(prompt_ids[:-1])
        common = {slot.number: common_prefix(prompt, slot.tokens) if slot.kind == kind else 0 for slot in self._slots}
        best = max(self._slots, key=lambda slot: (common[slot.number], not slot.is_busy))
        num_cached = common[best.number]
        if not best.is_busy and num_cached and 2 * num_cached >= len(best.tokens):
            return self._take(best, kind, prompt[:num_cached], None)
        if oldest is best or num_cached < LEAST_COPIED:
            return self._take(oldest, kind, prompt[: common[oldest.number]], None)
        return self._take(oldest, kind, prompt[:num_cached], best.number)

    def _take(self, slot: Slot, kind: object, tokens: list[int], copied_from: int | None) -> Placement:
        slot.is_busy, slot.kind, slot.tokens = True, kind, tokens
        return Placement(slot.number, len(tokens), copied_from)

    def extend(self, number: int, token_ids: Sequence[int]) -> None:
        """The slot holds these tokens too."""
        self._slots[number].tokens.extend(token_ids)

    def release(self, number: int) -> None:
        """The sequence is over; what the slot holds stays for the next that begins like it."""
        self._time += 1
        self._slots[number].is_busy, self._slots[number].used_at = False, self._time

    def forget(self) -> None:
        """The slots hold nothing that can be relied on, after a pass that failed half-way."""
        for slot in self._slots:
            slot.tokens.clear()


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(index for index in range(length) if one[index] != other[index])
