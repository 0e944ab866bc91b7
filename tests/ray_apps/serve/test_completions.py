from collections.abc import AsyncGenerator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from transformers import LlamaConfig

from ray_apps.engine.fake import FakeEngine
from ray_apps.engine.language import LanguageEngine, read_language
from ray_apps.engine.protocol import GenerationRequest, TokenDelta, TokenLogprob
from ray_apps.serve.completions import make_job
from ray_apps.serve.protocol.completion_request import CompletionRequest
from tests import tiny
from tests.ray_apps.serve.conftest import Client, chunks, events

URL = "/v1/completions"


async def post(client: httpx.AsyncClient, prompt: Any, **fields: Any) -> httpx.Response:
    return await client.post(URL, json={"model": "fake", "prompt": prompt, **fields})


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("né🙂", ["né🙂"]),
        (["ab", "你好"], ["ab", "你好"]),
        ([97, 98], ["ab"]),
        ([[97], [98, 99]], ["a", "bc"]),
        (["ab", [99]], ["ab", "c"]),
    ],
)
async def test_a_prompt_is_a_text_or_ids_or_several_of_either(
    api_client: Client, prompt: Any, texts: list[str]
) -> None:
    async with api_client() as client:
        response = await post(client, prompt)
    completion = Completion.model_validate(response.json(), strict=True)
    assert completion.id.startswith("cmpl-")
    assert [(choice.index, choice.text, choice.finish_reason) for choice in completion.choices] == [
        (index, text, "stop") for index, text in enumerate(texts)
    ]
    num_bytes = sum(len(text.encode()) for text in texts)
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (num_bytes, num_bytes + len(texts))


async def test_an_answer_has_16_tokens_unless_it_is_said_otherwise(api_client: Client) -> None:
    async with api_client() as client:
        assert (await post(client, "x" * 99)).json()["choices"][0]["text"] == "x" * 16
        assert (await post(client, "x" * 99, max_tokens=3)).json()["choices"][0]["text"] == "xxx"
        assert (await post(client, "x" * 99, ignore_eos=True, max_tokens=200)).json()["choices"][0]["text"] == "x" * 198


def test_a_job_says_whether_it_streams() -> None:
    for stream in (True, False, None):
        request = CompletionRequest.model_validate({"model": "m", "prompt": "a", "stream": stream})
        assert make_job(request, "id").streams is bool(stream)


async def test_an_echo_begins_with_the_prompt(api_client: Client) -> None:
    async with api_client() as client:
        both = (await post(client, ["né ", [98]], echo=True, n=2, max_tokens=1)).json()
        alone = (await post(client, "né", echo=True, max_tokens=0)).json()
    assert [choice["text"] for choice in both["choices"]] == ["né n", "né n", "bb", "bb"]
    assert both["choices"][0]["logprobs"] is None
    assert (alone["choices"][0]["text"], alone["choices"][0]["finish_reason"]) == ("né", "length")
    assert alone["usage"]["completion_tokens"] == 0


async def test_an_echo_tells_log_probabilities_as_lm_eval_reads_them(api_client: Client) -> None:
    """One token more than the prompt has, and the likeliest beside each; the first token has neither."""
    async with api_client() as client:
        response = await post(client, [[97, 195, 169, 98]], echo=True, logprobs=1, max_tokens=1, temperature=0)
    (choice,) = response.json()["choices"]
    told = choice["logprobs"]
    assert choice["text"] == "aéba"
    assert told["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "b", "a"]
    assert told["text_offset"] == [0, 1, 1, 2, 3]
    assert told["token_logprobs"] == [None, 0.0, 0.0, 0.0, 0.0]
    assert [top and max(top.values()) for top in told["top_logprobs"]] == [None, 0.0, 0.0, 0.0, 0.0]


class GoingOn(LanguageEngine):
    """Goes on as it is told, as a model with this tokenizer would; its end token might come at any place."""

    max_model_len = 999

    def __init__(self, tokenizer_name: str) -> None:
        self.tokenizer = tiny.TOKENIZERS[tokenizer_name]()
        tiny.set_template(self.tokenizer, "vicuna_v1.1")
        super().__init__(read_language(self.tokenizer, LlamaConfig(vocab_size=len(self.tokenizer)), None))
        self.answer: list[int] = []

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        answer = self._language.new_answer(request)
        scores = tuple(map(self._scored, request.prompt_ids[1:]))
        for token in (*self.answer, self.tokenizer.eos_token_id):
            if delta := answer.push(token, self._scored(token), prompt_logprobs=scores):
                yield delta
            scores = ()

    def _scored(self, token: int) -> TokenLogprob:
        specials = (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id)
        return TokenLogprob(token, -9.0, tuple((special, -float(number)) for number, special in enumerate(specials)))


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize("prompt", ["The assistant gives", "<|im_start|>user\nhello<|im_end|>\nabc", "<|im_start|>"])
@pytest.mark.parametrize("tokenizer_name", tiny.TOKENIZERS)
async def test_prompt_and_answer_are_what_the_tokenizer_makes_of_all_tokens(
    api_client: Client, tokenizer_name: str, prompt: str, as_ids: bool
) -> None:
    engine: Any = GoingOn(tokenizer_name)
    ids = engine.tokenizer(prompt).input_ids
    engine.answer = engine.tokenizer(" helpful, dé🙂", add_special_tokens=False).input_ids
    fields = {"echo": True, "logprobs": 2}
    async with api_client(engine) as client:
        (alone,) = (await post(client, ids if as_ids else prompt)).json()["choices"]
        (choice,) = (await post(client, ids if as_ids else prompt, **fields)).json()["choices"]
        told = chunks(await post(client, ids if as_ids else prompt, stream=True, **fields))
    decoded = engine.tokenizer.decode([*ids, *engine.answer])
    text, scores = choice["text"], choice["logprobs"]
    assert engine.tokenizer.decode(ids) + alone["text"] == decoded
    assert text == (decoded if as_ids else prompt + alone["text"])
    silent = {engine.tokenizer.eos_token} if as_ids else {engine.tokenizer.eos_token, "<s>"}
    for token, offset in zip(scores["tokens"], scores["text_offset"], strict=True):
        is_there = text.startswith(token, offset) or (token[0] == " " and text.startswith(token[1:], offset))
        assert is_there or token in silent or token.startswith("bytes:")
    specials = engine.tokenizer.get_added_vocab()
    expected = [*map(engine.tokenizer.decode, ids), engine.tokenizer.eos_token]
    assert [one for one in scores["tokens"] if one in specials] == [one for one in expected if one in specials]
    pieces = [one["choices"][0]["logprobs"] for one in told]
    assert [offset for piece in pieces if piece for offset in piece["text_offset"]] == scores["text_offset"]
    assert {engine.tokenizer.eos_token, engine.tokenizer.bos_token} <= scores["top_logprobs"][-1].keys()


@given(
    prompts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), min_size=1, max_size=3),
    echo=st.booleans(),
    logprobs=st.none() | st.integers(0, 2),
    n=st.integers(1, 2),
    max_tokens=st.integers(1, 40),
    stop=st.lists(st.text("ab 你🙂", min_size=1, max_size=2), max_size=2),
)
async def test_a_stream_adds_up_to_the_answer_in_one_piece(
    api_client: Client, prompts: list[str], echo: bool, logprobs: int | None, **fields: Any
) -> None:
    async with api_client() as client:
        asked = {**fields, "echo": echo, "logprobs": logprobs}
        whole = (await post(client, prompts, **asked)).json()
        *told, last = chunks(await post(client, prompts, stream=True, stream_options={"include_usage": True}, **asked))
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert len(whole["choices"]) == len(prompts) * fields["n"]
    for choice in whole["choices"]:
        mine = [one["choices"][0] for one in told if one["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in mine) == choice["text"]
        assert [one["finish_reason"] for one in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            pieces = [entry for one in mine if one["logprobs"] for entry in one["logprobs"][key]]
            assert pieces == (choice["logprobs"][key] if choice["logprobs"] else [])


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": []}, "prompt", "invalid_type"),
        ({"prompt": None}, "prompt", "invalid_type"),
        ({"prompt": [[]]}, "prompt", "invalid_type"),
        ({"prompt": [1, "a"]}, "prompt", "invalid_type"),
        ({"prompt": [True]}, "prompt", "invalid_type"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": [261]}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 257}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 129, "n": 2}, "prompt", "invalid_value"),
        ({"prompt": "x" * 40}, "prompt", "context_length_exceeded"),
        ({"best_of": 2}, "best_of", "invalid_value"),
        ({"suffix": "s"}, "suffix", "unsupported_parameter"),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": -1, "echo": True}, "max_tokens", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"messages": []}, "messages", "unknown_parameter"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"model": "other"}, "model", "model_not_found"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_honoured_is_refused_by_name(
    api_client: Client, fields: dict[str, Any], param: str, code: str, stream: bool
) -> None:
    body = {"model": "fake", "prompt": "abc", "stream": stream and "stream_options" not in fields, **fields}
    async with api_client(FakeEngine(max_model_len=30)) as client:
        response = await client.post(URL, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (404 if param == "model" else 400, param, code)


@pytest.mark.parametrize("fields", [{"best_of": 2, "n": 2}, {"suffix": ""}, {"suffix": None}, {"user": "u"}])
async def test_what_asks_for_nothing_is_let_pass(api_client: Client, fields: dict[str, Any]) -> None:
    async with api_client() as client:
        assert (await post(client, "abc", **fields)).status_code == 200


async def test_a_failure_in_a_stream_is_an_event_and_the_last_one(api_client: Client) -> None:
    async with api_client(FakeEngine(fail_after=2)) as client:
        response = await post(client, "hello", stream=True)
        assert (await post(client, "hello")).status_code == 500
    *_, last = events(response)
    assert "internal_error" in last


async def test_the_openai_client_reads_answers_and_streams(api_client: Client) -> None:
    client = openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=api_client(), max_retries=0)
    whole = await client.completions.create(model="fake", prompt="你好🙂", logprobs=1, echo=True)
    stream = await client.completions.create(model="fake", prompt="你好🙂", stream=True, echo=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text == "你好🙂你好🙂"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="fake", prompt="x", suffix="y")
    assert caught.value.param == "suffix"
    await client.close()
