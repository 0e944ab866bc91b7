import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any

import pytest

from ray_apps.engine.fake import FakeEngine
from ray_apps.engine.protocol import EngineError, GenerationRequest, SamplingError, SamplingParams, TokenDelta
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.errors import ApiError
from ray_apps.serve.jobs import ChatPrompt, EmbeddingJob, Job, Prompt, TextPrompt, TokenizeJob


class Recording(FakeEngine):
    """Keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[GenerationRequest] = []

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        self.asked.append(request)
        return super().generate(request)


async def test_counts_grow_with_the_answer() -> None:
    job = Job("id", (ChatPrompt(({"role": "user", "content": "a🙂"},)),), streams=True)
    backend = EngineBackend(FakeEngine(pause_s=0.001), stream_interval_s=0)
    deltas = [delta async for delta in backend.generate(job)]
    assert [delta.num_completion_tokens for delta in deltas] == [1, 5, 6]
    assert {delta.num_prompt_tokens for delta in deltas} == {7}


async def test_several_answers_have_seeds_of_their_own() -> None:
    engine = Recording()
    sampling = SamplingParams(max_tokens=0, seed=2**63 - 1)
    job = Job("id", (ChatPrompt(({"role": "user", "content": "ab"},)),), max_tokens=1, sampling=sampling, num_answers=3)
    deltas = [delta async for delta in EngineBackend(engine).generate(job)]
    assert sorted(delta.index for delta in deltas) == [0, 1, 2]
    assert [request.sampling.seed for request in engine.asked] == [2**63 - 1, -(2**63), -(2**63) + 1]
    assert {request.sampling.max_tokens for request in engine.asked} == {1}
    assert {request.group for request in engine.asked} == {"id"}


@pytest.mark.parametrize(
    ("prompt", "goes_on"),
    [(ChatPrompt(({"role": "user", "content": "a"},)), False), (TextPrompt("a"), True), ((97,), True)],
)
async def test_only_a_text_is_gone_on_with(prompt: Prompt, goes_on: bool) -> None:
    engine = Recording()
    assert [delta async for delta in EngineBackend(engine).generate(Job("id", (prompt,), max_tokens=1))]
    assert [request.goes_on for request in engine.asked] == [goes_on]


@pytest.mark.parametrize("fails", [False, True])
async def test_all_answers_end_with_their_consumer_or_with_the_first_that_fails(fails: bool) -> None:
    engine = FakeEngine(pause_s=0.001, fail_after=3 if fails else None)
    job = Job("id", (ChatPrompt(({"role": "user", "content": "x" * 1000},)),), num_answers=3)
    with suppress(ApiError):
        async with aclosing(EngineBackend(engine).generate(job)) as deltas:
            async for _ in deltas:
                if not fails:
                    break
    assert engine.num_running == 0


async def test_a_failing_engine_is_told_without_its_reason() -> None:
    deltas = EngineBackend(FakeEngine(fail_after=1)).generate(
        Job("id", (ChatPrompt(({"role": "user", "content": "ab"},)),))
    )
    assert (await anext(deltas)).text == "a"
    with pytest.raises(ApiError) as caught:
        await anext(deltas)
    assert caught.value.failure.status == 500
    assert "told to fail" not in caught.value.failure.message


@pytest.mark.parametrize("num_answers", [1, 2])
async def test_what_an_engine_will_not_sample_is_a_400_also_once_it_has_begun(num_answers: int) -> None:
    class Refusing(FakeEngine):
        async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
            yield TokenDelta("a", (97,))
            raise SamplingError("response_format", "too much work")

    job = Job("id", (ChatPrompt(({"role": "user", "content": "ab"},)),), num_answers=num_answers)
    with pytest.raises(ApiError, match="response_format: too much work") as caught:
        [delta async for delta in EngineBackend(Refusing()).generate(job)]
    assert (caught.value.failure.status, caught.value.failure.param) == (400, "response_format")


async def test_prompts_of_one_job_are_answered_side_by_side_and_told_apart() -> None:
    job = Job("id", (TextPrompt("ab"), tuple(b"cd")), num_answers=2, echo=True)
    deltas = [delta async for delta in EngineBackend(FakeEngine()).generate(job)]
    texts = {index: "".join(delta.text for delta in deltas if delta.index == index) for index in range(4)}
    assert texts == {0: "abab", 1: "abab", 2: "cdcd", 3: "cdcd"}
    assert (deltas[-1].num_prompt_tokens, deltas[-1].num_completion_tokens) == (4, 12)


async def test_an_echo_has_the_log_probabilities_of_the_prompt() -> None:
    sampling = SamplingParams(max_tokens=0, logprobs=1)
    job = Job("id", (TextPrompt("né"), TextPrompt("x")), max_tokens=0, sampling=sampling, echo=True)
    told = sorted([delta async for delta in EngineBackend(FakeEngine()).generate(job)], key=lambda delta: delta.index)
    assert [(delta.text, delta.finish_reason) for delta in told] == [("né", "length"), ("x", "length")]
    assert [one.token for one in told[0].logprobs] == [b"n", b"\xc3", b"\xa9"]
    assert [one.logprob for one in told[0].logprobs] == [None, 0.0, 0.0]
    assert [one.logprob for one in told[1].logprobs] == [None]


async def test_embeddings_have_length_1_and_the_order_of_the_texts() -> None:
    backend = EngineBackend(FakeEngine())
    both = await backend.embed(EmbeddingJob("id", (TextPrompt("a"), TextPrompt("bcc"))))
    alone = await backend.embed(EmbeddingJob("id", (TextPrompt("bcc"),)))
    assert both.vectors[1] == alone.vectors[0] != both.vectors[0]
    assert [math.hypot(*vector) for vector in both.vectors] == pytest.approx([1, 1])
    assert both.num_prompt_tokens == 4


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ((1, 261), r"input: 261 is no token; valid: 0 to 260"),
        ((-1,), r"input: -1 is no token"),
        (TextPrompt(""), r"input: has no tokens"),
        (TextPrompt("x" * 21), r"20 tokens; the prompt has 21"),
    ],
)
async def test_what_cannot_be_embedded_is_refused(prompt: Any, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        await EngineBackend(FakeEngine(max_model_len=20)).embed(EmbeddingJob("id", (prompt,)))
    assert (caught.value.failure.status, caught.value.failure.param) == (400, "input")


async def test_a_failure_ends_the_other_texts() -> None:
    ended: list[Any] = []

    class Failing(FakeEngine):
        async def embed(self, prompt_ids: Sequence[int]) -> list[float]:
            if len(prompt_ids) == 1:
                raise EngineError("secret")
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(prompt_ids)
            return []

    with pytest.raises(ApiError, match="could not be generated"):
        await EngineBackend(Failing()).embed(EmbeddingJob("id", (TextPrompt("long"), TextPrompt("x"))))
    await asyncio.sleep(0)
    assert len(ended) == 1


async def test_tokens_go_there_and_back() -> None:
    backend = EngineBackend(FakeEngine(max_model_len=20))
    tokens = await backend.tokenize(TokenizeJob(TextPrompt("né")))
    assert (tokens.token_ids, tokens.max_model_len) == (tuple("né".encode()), 20)
    assert await backend.detokenize(tokens.token_ids) == "né"
    assert (await backend.tokenize(TokenizeJob(TextPrompt("")))).token_ids == ()
    with pytest.raises(ApiError, match="tokens: 999 is no token"):
        await backend.detokenize((999,))
