import pytest

from ray_apps.engine.answer import Answer
from ray_apps.engine.detokenize import Vocabulary
from ray_apps.engine.protocol import SamplingParams, TokenDelta

BYTES = Vocabulary(tuple(bytes([byte]) for byte in range(256)))
END = 256


def deltas(answer: Answer, text: str) -> list[TokenDelta]:
    return [delta for token in (*text.encode(), END) if not answer.finished and (delta := answer.push(token))]


@pytest.mark.parametrize(
    ("max_tokens", "stop", "text", "reason"),
    [
        (99, (), "a🙂 b#", "stop"),
        (99, (" ",), "a🙂", "stop"),
        (99, ("#!",), "a🙂 b#", "stop"),
        (5, (), "a🙂", "length"),
        (3, (), "a", "length"),
        (8, (), "a🙂 b#", "length"),
        (9, (), "a🙂 b#", "stop"),
    ],
)
def test_an_answer_ends_once_with_its_reason(max_tokens: int, stop: tuple[str, ...], text: str, reason: str) -> None:
    answer = Answer(SamplingParams(max_tokens=max_tokens, stop=stop), BYTES, end_ids={END})
    told = deltas(answer, "a🙂 b#")
    assert "".join(delta.text for delta in told) == text
    assert [delta.finish_reason for delta in told] == [None] * (len(told) - 1) + [reason]


def test_the_deltas_hold_every_token_once() -> None:
    told = deltas(Answer(SamplingParams(max_tokens=99), BYTES, end_ids={END}), "🙂x")
    assert [delta.token_ids for delta in told] == [tuple("🙂".encode()), (ord("x"),), (END,)]


def test_a_stop_string_of_the_model_ends_an_answer_too() -> None:
    told = deltas(Answer(SamplingParams(max_tokens=99), BYTES, end_ids={END}, model_stop=("###",)), "hi###more")
    assert "".join(delta.text for delta in told) == "hi"
    assert told[-1].finish_reason == "stop"
