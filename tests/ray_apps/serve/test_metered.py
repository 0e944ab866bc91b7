import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from ray_apps.engine.fake import FakeEngine
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.errors import ApiError
from ray_apps.serve.jobs import ChatPrompt, Delta, EmbeddingJob, Job, TextPrompt, TokenizeJob
from ray_apps.serve.metered import MeteredBackend
from ray_apps.serve.metrics import RequestMetrics
from ray_apps.serve.policy import Limits
from ray_apps.serve.record import RequestRecord, begin
from tests.ray_apps.serve.test_metrics import Library

HELLO = ChatPrompt(({"role": "user", "content": "hello"},))


class AtTheEnd(EngineBackend):
    """Tells everything when all of it is there."""

    async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        for delta in [delta async for delta in super().generate(job)]:
            yield delta


def metered(
    engine: FakeEngine,
    *,
    library: Library | None = None,
    with_texts: bool = False,
    kind: type[EngineBackend] = EngineBackend,
) -> MeteredBackend:
    metrics = RequestMetrics(library) if library else None
    return MeteredBackend(
        kind(engine), "m", limits=Limits(max_n=3, max_answers=4), metrics=metrics, with_texts=with_texts
    )


def begun() -> RequestRecord:
    record = RequestRecord()
    begin(record)
    return record


async def test_what_an_answer_takes_is_noted_and_nothing_is_changed() -> None:
    record, library = begun(), Library()
    job = Job("1", (HELLO,), num_answers=2, streams=True)
    seen = [delta async for delta in metered(FakeEngine(), library=library).generate(job)]
    assert "".join(delta.text for delta in seen if delta.index == 1) == "hello"
    assert (record.model, record.num_prompt_tokens, record.num_completion_tokens) == ("m", 7, 12)
    assert record.finish_reasons == ["stop", "stop"]
    assert record.first_token_s is not None
    assert record.queue_s is not None
    assert 0 <= record.queue_s <= record.first_token_s
    assert (record.messages, record.answers) == (None, [])
    assert len(library.told("vllm_time_to_first_token_seconds")) == 1
    assert len(library.told("vllm_inter_token_latency_seconds")) == len(seen) - 2


async def test_an_answer_told_as_a_whole_has_the_times_of_the_replica() -> None:
    record, library = begun(), Library()
    record.queue_s = 50.0
    job = Job("1", (TextPrompt("x" * 20), TextPrompt("y" * 20)))
    backend = metered(FakeEngine(pause_s=0.01), library=library, kind=AtTheEnd)
    *_, last = [delta async for delta in backend.generate(job)]
    RequestMetrics(library).ended(record)
    assert (record.queue_s, record.last_token_s) == (50.0, 50.0 + last.worked_s)
    assert record.first_token_s is not None
    assert 50 < record.first_token_s < 50 + last.worked_s / 2
    assert library.told("vllm_time_to_first_token_seconds") == [record.first_token_s]
    assert library.told("vllm_request_queue_time_seconds") == [50.0]
    assert library.told("vllm_inter_token_latency_seconds") == []
    (per_token,) = library.told("vllm_request_time_per_output_token_seconds")
    assert per_token * 41 == pytest.approx(last.worked_s - last.first_worked_s)


async def test_texts_are_kept_where_they_are_to_be_logged() -> None:
    record = begun()
    job = Job("1", (HELLO, TextPrompt("x"), (121, 122)))
    [delta async for delta in metered(FakeEngine(), with_texts=True).generate(job)]
    assert record.messages == [
        {"messages": ({"role": "user", "content": "hello"},), "tools": ()},
        {"text": "x", "add_special_tokens": True},
        (121, 122),
    ]
    assert record.answers == ["hello", "x", "yz"]


async def test_more_answers_than_the_limit_are_refused_over_all_prompts() -> None:
    begun()
    for prompts, n, message in (
        ((HELLO, HELLO), 3, r"n: 6 answers to one request are too many; valid: up to 4"),
        ((HELLO,), 4, r"n: 4 answers to one prompt are too many; valid: up to 3"),
    ):
        with pytest.raises(ApiError, match=message) as refused:
            await anext(metered(FakeEngine()).generate(Job("1", prompts, num_answers=n)))
        assert (refused.value.failure.status, refused.value.failure.param) == (400, "n")


async def test_an_answer_that_breaks_off_counts_as_an_error() -> None:
    record = begun()
    with pytest.raises(ApiError):
        [delta async for delta in metered(FakeEngine(fail_after=2)).generate(Job("1", (HELLO,), num_answers=2))]
    assert record.finish_reasons == ["error", "error"]


async def test_an_answer_that_nobody_waits_for_counts_as_aborted_and_ends() -> None:
    record, engine = begun(), FakeEngine(pause_s=0.02)
    async with aclosing(metered(engine).generate(Job("1", (HELLO,), streams=True))) as deltas:
        await anext(deltas)
        assert engine.num_running == 1
    await asyncio.sleep(0)
    assert engine.num_running == 0
    assert record.finish_reasons == ["abort"]


async def test_everything_else_is_passed_on() -> None:
    record, backend = begun(), metered(FakeEngine())
    embedded = await backend.embed(EmbeddingJob("1", (TextPrompt("abc"),)))
    assert record.num_prompt_tokens == embedded.num_prompt_tokens == 3
    tokens = (await backend.tokenize(TokenizeJob(TextPrompt("abc")))).token_ids
    assert await backend.detokenize(tokens) == "abc"
    assert await backend.state() == "ready"
    assert record.model == "m"
