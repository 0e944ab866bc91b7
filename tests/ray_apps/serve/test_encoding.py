import pytest

from ray_apps.engine.fake import FakeEngine
from ray_apps.engine.protocol import SamplingParams, TokenDelta, TokenLogprob
from ray_apps.serve.encoding import Encoding
from ray_apps.serve.errors import ApiError
from ray_apps.serve.jobs import ChatPrompt, Job, Prompt, TextPrompt

ENGINE = FakeEngine()
HELLO = tuple(ENGINE.encode_text("hello"))


@pytest.mark.parametrize("prompt", [TextPrompt("hello"), HELLO])
def test_a_text_and_its_ids_are_one_prompt(prompt: Prompt) -> None:
    encoding = Encoding(ENGINE)
    assert encoding.encode(prompt, "prompt") == HELLO
    assert encoding.text(prompt, HELLO) == "hello"


@pytest.mark.parametrize("prompt", [(-1,), (ENGINE.vocab_size,), TextPrompt("")])
def test_what_cannot_be_read_is_refused_with_its_field(prompt: Prompt) -> None:
    with pytest.raises(ApiError) as caught:
        Encoding(ENGINE).encode(prompt, "input")
    assert (caught.value.failure.status, caught.value.failure.param) == (400, "input")


def test_nothing_may_be_counted() -> None:
    assert Encoding(ENGINE).encode(TextPrompt(""), "prompt", may_be_empty=True) == ()


def test_what_a_template_has_no_words_for_is_refused() -> None:
    chat = ({"role": "user", "content": "q"}, {"role": "tool", "content": "4"})
    with pytest.raises(ApiError, match="messages: this model's chat template has no tools"):
        Encoding(ENGINE).check_tools(ChatPrompt(chat))


def test_a_prompt_is_scored_from_its_second_token_on_if_scores_are_asked_for() -> None:
    first = TokenDelta("", (), None, (), 0, tuple(TokenLogprob(token, -1.0, ((token, -1.0),)) for token in HELLO[1:]))
    encoding, job = Encoding(ENGINE), Job("id", (HELLO,))
    assert encoding.score_prompt(job, HELLO, first) == []
    asked = Job("id", (HELLO,), sampling=SamplingParams(max_tokens=1, logprobs=1))
    scored = encoding.score_prompt(asked, HELLO, first)
    assert b"".join(one.token for one in scored) == b"hello"
    assert [one.logprob for one in scored] == [None, *[-1.0] * (len(HELLO) - 1)]
    assert [len(one.likeliest) for one in scored] == [0, *[1] * (len(HELLO) - 1)]
