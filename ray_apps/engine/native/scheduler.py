"""What goes through the model next. Bookkeeping only: no torch, no threads."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, Protocol, TypeVar

from ray_apps.engine.native.slots import Placement, SlotTable

PREFILL_TOKENS = 256
"""Tokens of prompts that are read in one pass, beside one token of every answer."""


class HasTokens(Protocol):
    """A sequence: its prompt and what was answered so far."""

    @property
    def ids(self) -> list[int]:
        """All of its tokens."""
        ...

    @property
    def reuses(self) -> bool:
        """Whether what is in the cache already need not be read again for it."""
        ...

    @property
    def kind(self) -> object:
        """What it is read through beside the model; only sequences of one kind share what is in the cache."""
        ...

    @property
    def group(self) -> object:
        """What it has in common with those that wait their turn together with it."""
        ...


Owner = TypeVar("Owner", bound=HasTokens)


@dataclass
class Running(Generic[Owner]):
    """A sequence in a slot, whose first `num_read` tokens have been through the model."""

    owner: Owner
    placement: Placement
    num_read: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_read = self.placement.num_cached

    @property
    def num_unread(self) -> int:
        """Tokens that are left before the next can be chosen."""
        return len(self.owner.ids) - self.num_read


@dataclass(frozen=True)
class Turn(Generic[Owner]):
    """The next `count` tokens of a sequence. After its last unread one the next token is chosen."""

    running: Running[Owner]
    count: int

    @property
    def chooses(self) -> bool:
        """Whether a token is chosen after it."""
        return self.count == self.running.num_unread


class Waiting(Generic[Owner]):
    """Those who wait. Groups take turns, each with its first, in the order they came."""

    def __init__(self) -> None:
        self._groups: dict[object, deque[Owner]] = {}  # the one whose turn it is comes first
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Owner]:
        return chain.from_iterable(self._groups.values())

    def append(self, owner: Owner) -> None:
        """Put it behind the others of its group."""
        self._groups.setdefault(owner.group, deque()).append(owner)
        self._length += 1

    @property
    def first(self) -> Owner:
        """Whose turn it is, of at least one."""
        return next(iter(self))

    def pop(self) -> Owner:
        """Take the first out; its group goes behind the others."""
        owner = self.first
        self.discard(owner)
        if owner.group in self._groups:
            self._groups[owner.group] = self._groups.pop(owner.group)
        return owner

    def discard(self, owner: Owner) -> None:
        """Take it out, if it is there."""
        group = self._groups.get(owner.group, deque())
        if owner in group:
            group.remove(owner)
            self._length -= 1
            if not group:
                del self._groups[owner.group]


class Scheduler(Generic[Owner]):
    """Continuous batching (Yu et al. 2022) with prompts read in chunks between the steps of answers.

    Every answer under way gets one token a pass. Of prompts `prefill_tokens` are read, first those of which least is
    left, for a long one must not keep others from their first token; a quarter is for the oldest, so that none waits
    for ever.
    """

    def __init__(self, num_slots: int, prefill_tokens: int = PREFILL_TOKENS) -> None:
        self.slots = SlotTable(num_slots)
        self.waiting: Waiting[Owner] = Waiting()
        self.running: list[Running[Owner]] = []
        self._prefill_tokens = prefill_tokens

    @property
    def has_work(self) -> bool:
        """Whether there is a next pass."""
        return bool(self.waiting or self.running)

    def place_waiting(self) -> Iterator[Running[Owner]]:
        """Give slots to those who wait, in their turn; yields each that got one."""
        while self.waiting and (placement := self._place(self.waiting.first)):
            self.running.append(Running(self.waiting.pop(), placement))
            yield self.running[-1]

    def _place(self, owner: Owner) -> Placement | None:
        return self.slots.place(owner.ids, reuse=owner.reuses, kind=owner.kind)

    def next_turns(self) -> list[Turn[Owner]]:
        """Whose tokens go through the model next, and how many."""
        shares = self._prompt_shares()
        turns = [Turn(running, shares.get(index, running.num_unread)) for index, running in enumerate(self.running)]
        return [turn for turn in turns if turn.count]

    def _prompt_shares(self) -> dict[int, int]:
        """How many tokens of each prompt are read, by its place in `running`."""
        unread = {index: running.num_unread for index, running in enumerate(self.running) if running.num_unread > 1}
        shares, left = dict.fromkeys(unread, 0), self._prefill_tokens
        order = [(index, left) for index in sorted(unread, key=lambda index: unread[index])]
        for index, most in [*((oldest, left // 4) for oldest in list(unread)[:1]), *order]:
            count = min(unread[index] - shares[index], most, left)
            shares[index] += count
            left -= count
        return shares

    def advance(self, turn: Turn[Owner]) -> None:
        """The tokens of a turn have been read."""
        running = turn.running
        read = running.owner.ids[running.num_read : running.num_read + turn.count]
        self.slots.extend(running.placement.slot, read)
        running.num_read += turn.count

    def end(self, owner: Owner) -> None:
        """A sequence is over, or given up."""
        self.waiting.discard(owner)
        for running in self.running:
            if running.owner is owner:
                self.slots.release(running.placement.slot)
                self.running.remove(running)
                return
