"""Splitting: a chat longer than the context becomes several, and a dataset becomes a training and a held-out part."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from data_prep.conversation import Conversation, Message


def split_conversation(
    conversation: Conversation, count_tokens: Callable[[Conversation], int], max_tokens: int
) -> Iterator[Conversation]:
    """Cut a chat between rounds into the fewest chats of at most `max_tokens`, each with the system message.

    Every round is in exactly one part, the last one included. A round that alone exceeds `max_tokens` comes out as a
    part of its own, for the caller to judge. Parts are named `<id>_<index of the first turn>`.
    """
    if count_tokens(conversation) <= max_tokens:
        yield conversation
        return
    system = conversation.messages[: len(conversation.messages) - len(conversation.turns)]
    turns = conversation.turns
    start = 0
    while start < len(turns):
        end = start + 2
        part = _part(conversation, system, turns[start:end], start)
        while end < len(turns):
            longer = _part(conversation, system, turns[start : end + 2], start)
            if count_tokens(longer) > max_tokens:
                break
            part, end = longer, end + 2
        yield part
        start = end


def _part(
    conversation: Conversation, system: tuple[Message, ...], turns: tuple[Message, ...], start: int
) -> Conversation:
    return replace(conversation, id=f"{conversation.id}_{start}", messages=(*system, *turns))


def is_held_out(identifier: str, fraction: float) -> bool:
    """Whether the chat `identifier` belongs to the held-out part.

    Decided by a hash of the id alone, so adding chats never moves one from one part to the other.
    """
    return _place(identifier, "") < fraction


def num_copies(identifier: str, weight: float) -> int:
    """How often the chat `identifier` of a source of that weight is taken: `weight` rounded up or down by its hash."""
    whole = int(weight)
    return whole + (_place(identifier, "sample") < weight - whole)


def _place(identifier: str, salt: str) -> float:
    """A number in [0, 1) that depends on the id and the salt."""
    digest = hashlib.sha256(f"{salt}{identifier}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64
