"""What is flagged is not answered, or not told; what cannot be judged is not taken for flagged."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import httpx
import pytest

from data_prep.errors import ConfigError
from data_prep.moderation import CATEGORIES, Judgement, ModerationError, PatternModerator
from ray_apps.engine.fake import FakeEngine
from ray_apps.serve.api import create_api
from ray_apps.serve.app import check_moderation
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.config import ServeArgs
from ray_apps.serve.errors import context_length_exceeded
from ray_apps.serve.guard_model import GuardModel, read_verdict
from ray_apps.serve.jobs import Delta, Job
from ray_apps.serve.moderation import ALONE_S, Judge, Moderating, ThreadedJudge, moderated
from ray_apps.serve.policy import Moderation
from ray_apps.serve.record import RequestRecord, begin, current_request
from ray_apps.serve.routing import ServedModel
from tests.ray_apps.serve.conftest import chunks, events

PATTERNS = ThreadedJudge(PatternModerator({"hate": ["bad"], "violence": ["fight"]}))
Ask = Callable[..., dict[str, Any]]


class Failing:
    """A moderator that is down, or never answers."""

    assessed: Sequence[str] = ("hate",)

    def __init__(self, *, hangs: bool = False) -> None:
        self._hangs = hangs

    async def judge(self, texts: Sequence[str]) -> list[Judgement]:
        if self._hangs:
            await asyncio.sleep(60)
        raise ModerationError("the moderator is down")


class Listening:
    """Flags nothing, and remembers what it was asked about."""

    assessed: Sequence[str] = ("hate",)

    def __init__(self) -> None:
        self.judged: list[str] = []

    async def judge(self, texts: Sequence[str]) -> list[Judgement]:
        self.judged.extend(texts)
        return [Judgement({}) for _ in texts]


class Moderated:
    """A client of the API on a fake engine, moderated; what was counted."""

    def __init__(self, judge: Judge = PATTERNS, engine: FakeEngine | None = None, **settings: Any) -> None:
        self.counted: Counter[tuple[str, str]] = Counter()
        self.engine = engine or FakeEngine()
        moderating = Moderating(
            judge, Moderation(kind="local", **settings), lambda where, outcome: self.counted.update([(where, outcome)])
        )
        backend = moderated(EngineBackend(self.engine, stream_interval_s=0), moderating)
        api = create_api([ServedModel("fake", backend)], moderating)
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        async with self.client:
            return await self.client.post(path, json=body)


async def test_a_flagged_request_is_refused_in_openai_s_shape(ask: Ask) -> None:
    moderated = Moderated()
    answer = await moderated.post("/v1/chat/completions", ask("something bad, and a fight"))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("content_filter", "messages")
    assert error["message"] == "The request was refused by moderation: hate, violence."
    assert moderated.counted == {("input", "flagged"): 1}


@pytest.mark.parametrize("stream", [False, True])
async def test_or_gets_an_empty_answer_that_says_so(ask: Ask, stream: bool) -> None:
    answer = await Moderated(refusal="content_filter").post("/v1/chat/completions", ask("bad", stream=stream, n=2))
    assert answer.status_code == 200
    choices = [c for chunk in chunks(answer) for c in chunk["choices"]] if stream else answer.json()["choices"]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["content_filter"] * 2
    assert "bad" not in answer.text


async def test_what_is_fine_passes_and_is_not_asked_about_again(ask: Ask) -> None:
    listening = Listening()
    settings: dict[str, Any] = {"applies_to": ["input"]}
    moderating = Moderating(listening, Moderation(kind="local", **settings))
    for texts in (["hi"], ["hi", "hello", "and"], ["hi", "hello", "and", "more", "hi"]):
        assert await moderating.judged(texts, "input") == [frozenset()] * len(texts)
    assert listening.judged == ["hi", "hello", "and", "more"]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "assistant", "content": "bad"}, {"role": "user", "content": "hello"}]},
        {"messages": [{"role": "user", "name": "bad", "content": "hello"}]},
        {"tools": [{"type": "function", "function": {"name": "f", "description": "bad"}}]},
    ],
)
async def test_all_that_a_client_sends_is_judged(ask: Ask, fields: dict[str, Any]) -> None:
    answer = await Moderated().post("/v1/chat/completions", ask("hello") | fields)
    assert answer.json()["error"]["code"] == "content_filter"


@pytest.mark.parametrize("at", [0, 9, 10, 11, 19, 25, 47])
@pytest.mark.parametrize("window", [1, 10, 200])
async def test_a_stream_is_stopped_before_what_is_flagged(ask: Ask, at: int, window: int) -> None:
    """Wherever it is, also across two windows: nothing of its own window is told, and the work ends."""
    text = "." * at + "bad" + "!" * 400
    moderated = Moderated(engine=FakeEngine(pause_s=0.0), applies_to=["output"], window_characters=window)
    answer = await moderated.post("/v1/chat/completions", ask(text, stream=True))
    choices = [choice for chunk in chunks(answer) for choice in chunk["choices"]]
    told = "".join(choice["delta"].get("content") or "" for choice in choices)
    assert choices[-1]["finish_reason"] == "content_filter"
    assert "bad" not in told
    assert "." * at == told[:at] or len(told) < at
    assert moderated.engine.num_running == 0
    assert moderated.counted[("output", "flagged")] == 1


async def test_an_answer_that_is_not_streamed_is_cut_too(ask: Ask) -> None:
    answer = await Moderated(applies_to=["output"], window_characters=5).post(
        "/v1/chat/completions", ask("all is well, then bad")
    )
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] == "content_filter"
    assert "all is well, then bad".startswith(choice["message"]["content"])
    assert "bad" not in choice["message"]["content"]


async def test_windows_end_and_begin_with_sentences(ask: Ask) -> None:
    """Halves of sentences are judged otherwise than whole ones."""
    settings: dict[str, Any] = {"applies_to": ["output"], "window_characters": 200}
    text = " ".join(f"This is sentence number {number}, and it is not short." for number in range(40))
    listening = Listening()
    answer = await Moderated(listening, **settings).post("/v1/chat/completions", ask(text, stream=True))
    told = "".join(c["delta"].get("content") or "" for chunk in chunks(answer) for c in chunk["choices"])
    assert told == text
    assert all(one.startswith("This is") and one.rstrip().endswith("not short.") for one in listening.judged)
    assert len(listening.judged) == 8
    listening = Listening()
    await Moderated(listening, **settings).post("/v1/chat/completions", ask("word " * 200, stream=True))
    assert len(listening.judged) == 3
    assert all(
        one.startswith("word ") and len(one) < 200 + 2 * 200 + 9 for one in listening.judged
    )  # a few characters a piece


async def test_other_answers_go_on() -> None:
    moderated = Moderated(applies_to=["output"], window_characters=4)
    answer = await moderated.post(
        "/v1/completions", {"model": "fake", "prompt": ["so bad", "so good"], "max_tokens": 9}
    )
    assert [choice["finish_reason"] for choice in answer.json()["choices"]] == ["content_filter", "stop"]
    assert answer.json()["choices"][1]["text"] == "so good"


async def test_prompts_in_ids_are_read() -> None:
    answer = await Moderated().post("/v1/completions", {"model": "fake", "prompt": list(b"bad"), "max_tokens": 9})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "content_filter"


@pytest.mark.parametrize("hangs", [False, True])
async def test_without_a_moderator_nothing_passes(ask: Ask, hangs: bool) -> None:
    moderated = Moderated(Failing(hangs=hangs), timeout_s=0.05)
    answer = await moderated.post("/v1/chat/completions", ask("hello"))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "moderation_unavailable"
    assert answer.headers["Retry-After"] == "5"
    assert moderated.counted == {("input", "failed"): 1}


async def test_or_everything_if_so_configured(ask: Ask) -> None:
    moderated = Moderated(Failing(), on_failure="fail_open")
    answer = await moderated.post("/v1/chat/completions", ask("bad"))
    assert answer.json()["choices"][0]["message"]["content"] == "bad"
    assert moderated.counted == {("input", "failed"): 1, ("output", "failed"): 1}


async def test_a_stream_of_which_the_moderator_is_lost_ends_with_an_error(ask: Ask) -> None:
    answer = await Moderated(Failing(), applies_to=["output"]).post("/v1/chat/completions", ask("hello", stream=True))
    assert answer.status_code == 503 or json.loads(events(answer)[-1])["error"]["code"] == "moderation_unavailable"


async def test_thresholds_and_what_is_allowed(ask: Ask) -> None:
    class Scored:
        assessed: Sequence[str] = ("hate",)

        async def judge(self, texts: Sequence[str]) -> list[Judgement]:
            return [Judgement({"hate": 0.3}, frozenset({"violence"}))] * len(texts)

    async def status(**settings: Any) -> int:
        return (await Moderated(Scored(), **settings).post("/v1/chat/completions", ask("x"))).status_code

    assert await status() == 400
    assert await status(allowed=["violence"]) == 200
    assert await status(allowed=["violence"], thresholds={"hate": 0.3}) == 400
    assert await status(thresholds={"hate": 0.4, "violence": 0.5}) == 200


async def test_the_endpoint_says_what_it_does_not_assess() -> None:
    moderated = Moderated()
    answer = await moderated.post("/v1/moderations", {"input": ["good", "a fight"], "model": "omni-moderation-latest"})
    first, second = answer.json()["results"]
    assert (first["flagged"], second["flagged"]) == (False, True)
    assert second["categories"]["violence"]
    assert second["category_scores"]["violence"] == 1.0
    assert set(second["categories"]) == {*CATEGORIES}
    assert set(second["not_assessed"]) == {*CATEGORIES} - {"hate", "violence"}
    assert moderated.counted == {("endpoint", "passed"): 1, ("endpoint", "flagged"): 1}


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("text", 200),
        ([{"type": "text", "text": "text"}], 200),
        ([{"type": "image_url", "image_url": {"url": "x"}}], 400),
        ([], 400),
        (5, 400),
        ([5], 400),
    ],
)
async def test_the_endpoint_takes_texts(given: Any, status: int) -> None:
    answer = await Moderated().post("/v1/moderations", {"input": given})
    assert answer.status_code == status


async def test_the_endpoint_gives_no_guess() -> None:
    answer = await Moderated(Failing(), on_failure="fail_open").post("/v1/moderations", {"input": "x"})
    assert answer.status_code == 503


class Saying:
    """A backend that always says the same."""

    def __init__(self, answer: str) -> None:
        self._answer = answer
        self.jobs: list[Job] = []

    async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        self.jobs.append(job)
        yield Delta(self._answer, 1, 1, "stop")


@pytest.mark.parametrize("end", ["you make\n", "so. ", "作。"])
async def test_what_stands_across_two_windows_is_found(ask: Ask, end: str) -> None:
    """Also where the first of them ends with a sentence."""
    text = "x" * 180 + " and this is how " + "y" * 20 + end + "a bomb at home, step by step, and so on."
    judge = ThreadedJudge(PatternModerator({"illicit": [r"(make|so\.|作。)\s*a\s+bomb"]}))
    moderated = Moderated(judge, applies_to=["output"])
    answer = await moderated.post("/v1/chat/completions", ask(text, stream=True))
    assert moderated.counted["output", "flagged"] == 1
    assert "bomb" not in answer.text


async def test_whatever_fails_in_a_moderator_is_a_failure(ask: Ask) -> None:
    class Broken(Failing):
        async def judge(self, texts: Sequence[str]) -> list[Judgement]:
            raise RecursionError

    moderated = Moderated(Broken(), on_failure="fail_open")
    assert (await moderated.post("/v1/chat/completions", ask("hello"))).status_code == 200
    assert moderated.counted == {("input", "failed"): 1, ("output", "failed"): 1}
    assert (await Moderated(Broken()).post("/v1/chat/completions", ask("hello"))).status_code == 503


async def test_a_moderator_that_is_down_is_left_alone_for_a_while() -> None:
    class Down(Failing):
        num_asked = 0

        async def judge(self, texts: Sequence[str]) -> list[Judgement]:
            self.num_asked += 1
            raise ModerationError("down")

    now, down = [0.0], Down()
    moderating = Moderating(down, Moderation(kind="local", on_failure="fail_open"), now=lambda: now[0])
    for _ in range(10):
        assert await moderating.judged(["x"], "input") == [frozenset()]
    assert down.num_asked == 2
    now[0] += ALONE_S
    await moderating.judged(["x"], "input")
    assert down.num_asked == 3


async def test_a_guard_model_is_asked_greedily_in_pieces_and_on_its_own_account() -> None:
    class Short(Saying):
        async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
            self.jobs.append(job)
            current_request().num_prompt_tokens += 1000
            text = job.prompts[0].messages[0]["content"]  # type: ignore[union-attr]
            if len(text) > 1000:
                raise context_length_exceeded(len(text), 0, 1000)
            yield Delta("unsafe\nS10" if "bad" in text else "safe", 1, 1, "stop")

    guard: Any = Short("")
    record = RequestRecord()
    begin(record)
    first, second = await GuardModel(guard, "guard").judge(["x" * 3000 + "bad" + "x" * 900, "fine"])
    assert (first.flagged, second.flagged) == ({"hate"}, set())
    assert {job.sampling.temperature for job in guard.jobs} == {0.0}
    assert record.num_prompt_tokens == 0


async def test_a_guard_model_is_asked_few_things_at_a_time_and_nothing_in_vain() -> None:
    class Slow(Saying):
        num_now = most = num_done = 0

        async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
            self.num_now += 1
            self.most = max(self.most, self.num_now)
            try:
                await asyncio.sleep(0.01)
                self.num_done += 1
                yield Delta(self._answer, 1, 1, "stop")
            finally:
                self.num_now -= 1

    slow: Any = Slow("safe")
    await GuardModel(slow, "guard").judge([f"{number}" for number in range(20)])
    assert slow.most == 4
    rambling: Any = Slow("maybe")
    with pytest.raises(ModerationError):
        await GuardModel(rambling, "guard").judge([f"{number}" for number in range(20)])
    assert rambling.num_done < 20
    assert rambling.num_now == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "local", "thresholds": {"harrasment": 0.5}}, "thresholds: 'harrasment' is no category that this"),
        ({"kind": "local", "allowed": ["violence"]}, "allowed: 'violence' is no category that this moderator assesses"),
        ({"kind": "llm", "model": "m", "thresholds": {"nonsense": 0.5}}, "thresholds: 'nonsense' is no category"),
    ],
)
def test_a_policy_speaks_of_what_is_assessed(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"args.moderation.{message}")):
        check_moderation(Moderation.model_validate(settings))


@pytest.mark.parametrize("threshold", [0.0, -1.0, 50.0, float("nan")])
def test_a_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"args\.moderation\.thresholds"):
        ServeArgs.parse(
            {"engine": "fake", "model": "fake", "moderation": {"kind": "local", "thresholds": {"hate": threshold}}},
            "args",
        )


def test_off_may_be_written_as_yaml_reads_it() -> None:
    assert Moderation.model_validate({"kind": False}).kind == "off"


async def test_a_guard_model_judges(ask: Ask) -> None:
    guard: Any = Saying("unsafe\nS10,S1")
    answer = await Moderated(GuardModel(guard, "guard")).post("/v1/chat/completions", ask("x"))
    assert answer.json()["error"]["message"] == "The request was refused by moderation: hate, illicit/violent."
    (job,) = guard.jobs
    assert job.prompts[0].messages == ({"role": "user", "content": "x"},)


@pytest.mark.parametrize(
    ("answer", "flagged"),
    [
        (" safe\n", set()),
        ("unsafe\nS4", {"sexual/minors"}),
        ("unsafe", {"flagged"}),
        ("unsafe\nS99,S", {"flagged"}),
    ],
)
def test_a_guard_s_verdict(answer: str, flagged: set[str]) -> None:
    assert read_verdict(answer, "guard").flagged == flagged


@pytest.mark.parametrize("answer", ["", "maybe", "safe or not", "I think it is safe", "unsafe or not"])
def test_a_guard_that_rambles_gives_none(answer: str) -> None:
    with pytest.raises(ModerationError, match="the guard model 'guard' gave no verdict"):
        read_verdict(answer, "guard")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "llm"}, "model: is required for kind 'llm'"),
        ({"kind": "llm", "model": "guard"}, "'guard' is not served; valid: fake"),
        ({"kind": "local", "applies_to": []}, "applies_to"),
        ({"kind": "maybe"}, "moderation.kind"),
    ],
)
def test_mistakes_name_the_field(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ServeArgs.parse({"engine": "fake", "model": "fake", "moderation": settings}, "args")
