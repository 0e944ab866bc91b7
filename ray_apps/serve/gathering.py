"""Several answers of an engine as one stream of pieces, in which those that are ready together are told together."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from itertools import chain
from typing import TypeVar

from ray_apps.engine.protocol import TokenDelta

Item = TypeVar("Item")
Pieces = AsyncGenerator[tuple[int, TokenDelta], None]
Answers = Sequence[AsyncGenerator[TokenDelta, None]]


async def gathered(answers: Answers, pause_s: Callable[[], float] | None) -> Pieces:
    """The pieces of `answers` as they come, with the number of the answer. All end when one fails.

    After some have been told, `pause_s()` passes before the next, or less if an answer ends: what came of one answer
    meanwhile is one piece. None: every answer is one piece, told when all are over.
    """
    ready: asyncio.Queue[tuple[int, TokenDelta | Exception | None]] = asyncio.Queue()
    has_ended = asyncio.Event()

    async def pass_on(index: int) -> None:
        try:
            async with aclosing(answers[index]) as deltas:
                async for delta in deltas:
                    ready.put_nowait((index, delta))
                    if delta.finish_reason:
                        has_ended.set()
            ready.put_nowait((index, None))
        except Exception as error:
            ready.put_nowait((index, error))
            has_ended.set()

    tasks = [asyncio.create_task(pass_on(index)) for index in range(len(answers))]
    unfinished = set(range(len(answers)))
    held: dict[int, list[TokenDelta]] = {}
    failure: Exception | None = None
    try:
        while unfinished:
            has_ended.clear()
            for index, piece in await _everything(ready):
                if isinstance(piece, TokenDelta):
                    held.setdefault(index, []).append(piece)
                if piece is None or (isinstance(piece, TokenDelta) and piece.finish_reason):
                    unfinished.discard(index)
                if isinstance(piece, Exception):
                    failure = failure or piece
            if pause_s is None and unfinished and not failure:
                continue
            for index, pieces in held.items():
                yield index, joined(pieces)
            held.clear()
            if failure:
                raise failure
            if pause_s is not None and unfinished:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s()):
                        await has_ended.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _everything(queue: asyncio.Queue[Item]) -> list[Item]:
    """What is in `queue`; waits for the first."""
    items = [await queue.get()]
    while not queue.empty():
        items.append(queue.get_nowait())
    return items


def joined(pieces: Sequence[TokenDelta]) -> TokenDelta:
    """Pieces of one answer that follow each other, as one."""
    first, last = pieces[0], pieces[-1]
    if first is last:
        return first
    return TokenDelta(
        "".join(piece.text for piece in pieces),
        tuple(chain.from_iterable(piece.token_ids for piece in pieces)),
        last.finish_reason,
        tuple(chain.from_iterable(piece.logprobs for piece in pieces)),
        last.num_cached,
        first.prompt_logprobs,
    )
