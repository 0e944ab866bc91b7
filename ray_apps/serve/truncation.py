"""Room in the context: how much an answer has, and which messages of a chat are left out where there is too little."""

from collections.abc import Callable
from typing import Any

from ray_apps.serve.errors import context_length_exceeded

Messages = tuple[dict[str, Any], ...]

SHARE_FOR_ANSWER = 8
"""An answer of no given length has room for this part of the context: one eighth."""


def answer_room(max_tokens: int | None, limit: int) -> int:
    """Tokens that are kept free for the answer, of `limit` in all."""
    return max(1, limit // SHARE_FOR_ANSWER) if max_tokens is None else max_tokens


def answer_budget(num_prompt: int, wanted: int | None, limit: int, *, param: str = "messages") -> int:
    """How many tokens the answer may have, with a prompt of `num_prompt` and at most `limit` in all.

    Raises:
        ApiError: they do not fit.
    """
    room = limit - num_prompt
    if room < (1 if wanted is None else wanted):
        raise context_length_exceeded(num_prompt, wanted or 0, limit, param=param)
    return room if wanted is None else wanted


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
