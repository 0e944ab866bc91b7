import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.engine.protocol import TokenDelta, TokenLogprob
from ray_apps.serve.gathering import gathered, joined


async def answer(text: str, *, pause_s: float = 0.0, fails: bool = False) -> AsyncGenerator[TokenDelta, None]:
    """One character a piece."""
    for number, character in enumerate(text):
        await asyncio.sleep(pause_s)
        yield TokenDelta(character, (ord(character),), "length" if number == len(text) - 1 and not fails else None)
    if fails:
        raise ValueError("it failed")


def no_pause() -> float:
    return 0.0


async def test_the_pieces_of_several_answers_are_told_apart() -> None:
    told = [piece async for piece in gathered([answer("ab", pause_s=0.001), answer("cd", pause_s=0.001)], no_pause)]
    assert ["".join(delta.text for index, delta in told if index == number) for number in (0, 1)] == ["ab", "cd"]
    assert [delta.finish_reason for _, delta in told if delta.finish_reason] == ["length", "length"]


async def test_what_came_in_a_pause_is_one_piece_and_the_first_waits_for_nothing() -> None:
    pauses = iter([0.05, 0.0])
    told = [delta async for _, delta in gathered([answer("abcd", pause_s=0.001)], lambda: next(pauses))]
    assert [delta.text for delta in told] == ["a", "bcd"]
    assert (told[1].token_ids, told[1].finish_reason) == ((98, 99, 100), "length")


async def test_an_end_waits_for_nothing() -> None:
    async with asyncio.timeout(10):
        told = [delta async for _, delta in gathered([answer("abc", pause_s=0.001)], lambda: 60.0)]
    assert [delta.text for delta in told] == ["a", "bc"]


async def test_a_whole_answer_is_one_piece() -> None:
    told = [piece async for piece in gathered([answer("abc", pause_s=0.001), answer("d")], None)]
    assert sorted((index, delta.text) for index, delta in told) == [(0, "abc"), (1, "d")]


@pytest.mark.parametrize("pause", [no_pause, None])
async def test_what_came_before_a_failure_is_told(pause: Callable[[], float] | None) -> None:
    told = []

    async def read() -> None:
        async for index, delta in gathered([answer("ab", fails=True), answer("c" * 99, pause_s=0.01)], pause):
            told.append((index, delta.text))

    with pytest.raises(ValueError, match="it failed"):
        await read()
    assert "".join(text for index, text in told if index == 0) == "ab"


async def test_all_answers_end_with_whoever_reads_them() -> None:
    ended: list[int] = []

    async def endless(number: int) -> AsyncGenerator[TokenDelta, None]:
        try:
            while True:
                await asyncio.sleep(0.001)
                yield TokenDelta("x", (1,))
        finally:
            ended.append(number)

    async with aclosing(gathered([endless(0), endless(1)], lambda: 60.0)) as pieces:
        await anext(pieces)
    assert sorted(ended) == [0, 1]


@given(texts=st.lists(st.text(max_size=3), min_size=1, max_size=5))
def test_pieces_joined_are_what_they_were_apart(texts: list[str]) -> None:
    score = TokenLogprob(1, -0.5)
    pieces = [TokenDelta(text, (number,), None, (score,), 7) for number, text in enumerate(texts)]
    whole = joined([*pieces[:-1], TokenDelta(texts[-1], (len(texts) - 1,), "stop", (score,), 7)])
    assert (whole.text, whole.token_ids) == ("".join(texts), tuple(range(len(texts))))
    assert (whole.finish_reason, whole.num_cached, len(whole.logprobs)) == ("stop", 7, len(texts))
