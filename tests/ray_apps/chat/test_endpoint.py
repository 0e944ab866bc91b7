"""What an endpoint says and refuses, over real HTTP, in words."""

import pytest

from data_prep.errors import ChatError
from ray_apps.chat.endpoint import Endpoint
from ray_apps.chat.talker import Ending, Sampling, TooLongError
from tests.ray_apps.chat.scripted import Reply, Script, refusal

ASKED = [{"role": "user", "content": "你好 😀"}]


def test_an_answer_comes_in_pieces_and_ends(script: Script, url: str) -> None:
    talker = Endpoint(url, key="secret")
    *pieces, ending = talker.reply(ASKED, Sampling(0.1, 0.9, 5))
    assert "".join(map(str, pieces)) == "echo: 你好 😀"
    assert ending == Ending("stop", 7, len(pieces))
    asked = script.requests[0]
    assert (asked["model"], asked["temperature"], asked["top_p"], asked["max_tokens"]) == ("first", 0.1, 0.9, 5)
    assert script.keys == ["Bearer secret"]
    talker.close()


def test_models_are_chosen_by_name(script: Script, url: str) -> None:
    assert Endpoint(f"{url}/v1/", "second").name == "second"
    with pytest.raises(ChatError, match="has no model 'third'; valid: first, second"):
        Endpoint(url, "third")
    script.models = []
    assert Endpoint(url, "third").name == "third"
    with pytest.raises(ChatError, match="lists no models; name one with --model-name"):
        Endpoint(url)


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (refusal(429, "all taken", **{"Retry-After": "3"}), ChatError, "^busy; try again in 3 s: all taken$"),
        (refusal(503, "starting"), ChatError, "^busy; try again later: starting$"),
        (refusal(401, "no such key"), ChatError, "^the key is not accepted; set OPENAI_API_KEY: no such key$"),
        (refusal(400, "9 tokens", "context_length_exceeded"), TooLongError, "^9 tokens$"),
        (refusal(400, "This model's maximum context length is 8"), TooLongError, "maximum context length"),
        (refusal(400, "not that", "content_filter"), ChatError, "^refused: not that$"),
        (refusal(500, "oh"), ChatError, "^status 500: oh$"),
        ((502, {"detail": "gateway"}, {}), ChatError, '^status 502: {"detail": "gateway"}$'),
    ],
)
def test_refusals_are_said_in_words(script: Script, url: str, reply: Reply, kind: type, words: str) -> None:
    script.replies = [reply]
    with pytest.raises(kind, match=words):
        list(Endpoint(url).reply(ASKED, Sampling()))


def test_a_lost_connection_is_said(script: Script, url: str) -> None:
    script.breaks_off = True
    talker = Endpoint(url)
    pieces: list[object] = []
    with pytest.raises(ChatError, match="was lost in the middle of the answer"):
        pieces.extend(talker.reply(ASKED, Sampling()))
    assert "".join(map(str, pieces)) == "echo: 你好 😀"
    with pytest.raises(ChatError, match=r"http://127\.0\.0\.1:1/v1 cannot be reached"):
        Endpoint("http://127.0.0.1:1")
    with pytest.raises(ChatError, match="cannot be reached"):
        Endpoint("nonsense")


def test_whoever_leaves_stops_the_work(script: Script, url: str) -> None:
    script.pause_s = 0.01
    script.replies = ["long " * 1000]
    answer = Endpoint(url).reply(ASKED, Sampling())
    next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert script.has_left.wait(10)
