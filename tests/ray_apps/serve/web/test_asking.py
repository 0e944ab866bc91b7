"""What the page asks, and what it tells a person instead of an error."""

import json
import re
from contextlib import aclosing
from typing import Any

import pytest

from data_prep.moderation import PatternModerator
from ray_apps.engine.fake import FakeEngine
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.errors import ApiError, overloaded, unavailable
from ray_apps.serve.metered import MeteredBackend
from ray_apps.serve.moderation import Moderating, ThreadedJudge, moderated
from ray_apps.serve.policy import Limits, Moderation, Page
from ray_apps.serve.rate_limits import Rates
from ray_apps.serve.request_log import Journal
from ray_apps.serve.routing import ServedModel
from ray_apps.serve.web.asking import AskError, Asking, Said, Sampling, Visitor, in_words


def asking(
    engine: FakeEngine | None = None,
    judge: ThreadedJudge | None = None,
    *,
    rates: Rates | None = None,
    told: list[str] | None = None,
    **page: Any,
) -> Asking:
    moderating = Moderating(judge, Moderation(kind="local")) if judge else None
    backend = moderated(EngineBackend(engine or FakeEngine(), stream_interval_s=0), moderating)
    metered = MeteredBackend(backend, "fake", limits=Limits())
    journal = Journal(told.append) if told is not None else None
    return Asking([ServedModel("fake", metered, adapters=("tuned",))], Page(**page), rates, journal)


async def said(asked: Asking, *texts: str, model: str = "fake", **sampling: Any) -> list[Said]:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    return [one async for one in asked.reply(model, messages, Sampling(**sampling))]


async def test_an_answer_grows_and_says_what_it_took() -> None:
    *growing, last = await said(asking(), "你好, world")
    assert last.text == "你好, world"
    assert last.is_over
    assert re.fullmatch(r"First token after \d+\.\d\d s, [\d.]+ tokens/s\.", last.note)
    assert all(last.text.startswith(one.text) and not one.is_over for one in growing)
    assert asking().names == ["fake", "tuned"]


async def test_what_a_person_should_know() -> None:
    (*_, last) = await said(asking(), "a long answer", max_tokens=5)
    assert last.note.startswith("The answer was cut at its longest.")
    (*_, last) = await said(asking(FakeEngine(max_model_len=60)), "x" * 30, "y" * 10, "z" * 20, max_tokens=20)
    assert last.note.startswith("The 2 oldest messages no longer fit and were left out.")
    assert last.text == "z" * 20


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["x" * 101], "This message has 101 characters; at most 100 are taken."),
        (["a", "b", "c", "d", "e"], "This chat has had its 2 questions; begin a new one."),
    ],
)
async def test_the_page_s_own_limits(texts: list[str], words: str) -> None:
    with pytest.raises(AskError, match=re.escape(words)):
        await said(asking(max_turns=2, max_characters=100), *texts)


async def test_errors_are_words() -> None:
    with pytest.raises(AskError, match="too long for the model"):
        await said(asking(FakeEngine(max_model_len=20)), "x" * 50)
    with pytest.raises(AskError, match="does not exist"):
        await said(asking(), "x", model="other")
    with pytest.raises(AskError, match="could not be generated"):
        await said(asking(FakeEngine(fail_after=2)), "hello")
    judge = ThreadedJudge(PatternModerator({"hate": ["bad"]}))
    with pytest.raises(AskError, match=r"Refused by moderation: hate\."):
        await said(asking(judge=judge), "bad")
    assert in_words(overloaded().failure) == "Busy: try again in 1 s."
    assert in_words(unavailable().failure) == "Busy: try again in 1 s."


async def test_an_answer_gets_the_room_there_is() -> None:
    (*_, last) = await said(asking(FakeEngine(max_model_len=60)), "x" * 20, max_tokens=500)
    assert last.text == "x" * 20


async def test_answers_are_told_as_requests_are() -> None:
    lines: list[str] = []
    asked = asking(FakeEngine(max_model_len=60), told=lines)
    question = [{"role": "user", "content": "hello"}]
    async for _ in asked.reply("fake", question, Sampling(max_tokens=20), Visitor("ann")):
        pass
    with pytest.raises(AskError):
        await said(asked, "x" * 70)
    async with aclosing(asked.reply("fake", question, Sampling())) as answer:
        await anext(answer)
    with pytest.raises(AskError):
        await said(asked, "x", model="other")
    records = [json.loads(line) for line in lines]
    assert [(one["key"], one["path"], one["status"], one["model"]) for one in records] == [
        ("ann", "page", 200, "fake"),
        ("anybody", "page", 400, "fake"),
        ("anybody", "page", 200, "fake"),
        ("anybody", "page", 404, None),
    ]
    assert [one["finish_reasons"] for one in records] == [["stop"], ["error"], ["abort"], []]
    assert records[0]["completion_tokens"] > 0


async def test_the_rates_are_those_of_the_api() -> None:
    rates = Rates(requests_per_minute=1)
    asked = asking(rates=rates)
    await said(asked, "first")
    with pytest.raises(AskError, match=r"Busy: try again in \d+ s\."):
        await said(asked, "second")
    with pytest.raises(ApiError):
        rates.enter("anybody")
    rates.enter("ann")
