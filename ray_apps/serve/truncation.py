"""Chats that are too long: which of their messages are left out."""

from collections.abc import Callable
from typing import Any

Messages = tuple[dict[str, Any], ...]

SHARE_FOR_ANSWER = 8
"""An answer of no given length has room for this part of the context: one eighth."""


def answer_room(max_tokens: int | None, limit: int) -> int:
    """Tokens that are kept free for the answer, of `limit` in all."""
    return max(1, limit // SHARE_FOR_ANSWER) if max_tokens is None else max_tokens


def without_oldest(messages: Messages, num_rounds: int) -> Messages:
    """`messages` without the first rounds: a user's message and all that follows it, up to the next one.

    What the system says stays, and so does the last round.
    """
    starts = [number for number, message in enumerate(messages) if message["role"] == "user"]
    if not starts or not num_rounds:
        return messages
    end = starts[min(num_rounds, len(starts) - 1)]
    return tuple(message for number, message in enumerate(messages) if number >= end or message["role"] == "system")


def shortest_cut(messages: Messages, fits: Callable[[Messages], bool]) -> Messages:
    """`messages` without as many of the oldest rounds as it takes to fit; without all of them if it never does."""
    most = max(0, sum(message["role"] == "user" for message in messages) - 1)
    least = 0
    while least < most:
        middle = (least + most) // 2
        if fits(without_oldest(messages, middle)):
            most = middle
        else:
            least = middle + 1
    return without_oldest(messages, least)
