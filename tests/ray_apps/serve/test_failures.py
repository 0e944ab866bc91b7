"""What happens to requests when a client, a replica or an engine goes away, on a real endpoint."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_apps.engine.build import build_engine
from ray_apps.engine.options import EngineOptions
from ray_apps.engine.protocol import GenerationRequest, SamplingParams
from ray_apps.serve.config import ModelArgs
from ray_apps.serve.jobs import Job
from tests.ray_apps.serve.endpoint import (
    Endpoint,
    Slow,
    Watched,
    actors,
    at_once,
    serve_cluster,
    serving,
    start_serve,
    wait_until,
)

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
LONG = {"max_tokens": 400, "ignore_eos": True}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_cluster(num_cpus=4):
        yield start_serve()


@pytest.fixture(scope="class")
def tiny(url: str, tiny_model_dir: Path) -> Iterator[Endpoint]:
    with serving(url, model=str(tiny_model_dir), num_replicas=2, num_threads=1) as endpoint:
        yield endpoint


def pids(endpoint: Endpoint) -> set[int]:
    return {replica.pid for replica in endpoint.replicas()}


class TestOnTwoReplicas:
    def test_every_chat_returns_to_its_cache_and_chats_are_spread(self, tiny: Endpoint) -> None:
        before = [stats.num_prompt_tokens for stats in tiny.all_stats()]
        questions = [f"Question {number}: what is {number} plus {number}?" for number in range(24)]
        with at_once(4) as pool:  # with more a replica may become so busy that a chat goes elsewhere
            first = list(pool.map(lambda question: tiny.ask(question, max_tokens=8), questions))
            second = list(
                pool.map(
                    lambda turn: tiny.ask(turn[0], turn[1].text, "And why?", max_tokens=8),
                    zip(questions, first, strict=True),
                )
            )
        assert all(later.num_cached > 20 for later in second)
        read = [stats.num_prompt_tokens - old for stats, old in zip(tiny.all_stats(), before, strict=True)]
        assert min(read) > 0.25 * sum(read)

    def test_a_session_may_be_named(self, tiny: Endpoint) -> None:
        for number in range(6):
            headers = {"x-session-id": f"session-{number}"}
            tiny.ask(f"{number} is where it begins, and it goes on from there", headers=headers, max_tokens=4)
            again = tiny.ask(f"{number} is where it begins, and goes on otherwise", headers=headers, max_tokens=4)
            assert again.num_cached > 10

    @pytest.mark.parametrize("streams", [True, False])
    def test_the_work_for_a_client_that_leaves_is_given_up(self, tiny: Endpoint, streams: bool) -> None:
        before = sum(stats.num_generated_tokens for stats in tiny.all_stats())
        body = tiny.body("endless", stream=streams, **LONG)
        with httpx.Client(base_url=tiny.url) as client:
            if streams:
                with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    next(response.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/chat/completions", json=body, timeout=0.1)
        wait_until(lambda: sum(stats.num_running for stats in tiny.all_stats()) == 0)
        assert sum(stats.num_generated_tokens for stats in tiny.all_stats()) - before < 400

    def test_a_killed_replica_breaks_its_streams_off_and_nothing_else(self, tiny: Endpoint) -> None:
        def is_busy() -> bool:
            return all(stats.num_running >= 4 for stats in tiny.all_stats())

        with at_once(12) as pool:
            streams = [pool.submit(tiny.stream, f"stream {number}", **LONG) for number in range(6)]
            wholes = [pool.submit(tiny.ask, f"whole {number}", **LONG) for number in range(6)]
            wait_until(is_busy)
            victim = pids(tiny).pop()
            os.kill(victim, signal.SIGKILL)
        told = [stream.result() for stream in streams]
        broken = [one for one in told if one.error]
        assert 0 < len(broken) < 6
        assert {(one.status, one.is_done, one.error["code"]) for one in broken if one.error} == {
            (200, False, "answer_lost")
        }
        assert all(one.is_done and not one.error for one in told if one not in broken)
        assert [one.result().status for one in wholes] == [200] * 6
        assert {one.result().usage["completion_tokens"] for one in wholes} == {400}
        wait_until(lambda: len(pids(tiny) - {victim}) == 2)
        wait_until(lambda: tiny.replica_states() == {"RUNNING": 2})

    def test_a_killed_ingress_ends_what_it_was_telling_with_an_error(self, tiny: Endpoint) -> None:
        (ingress,) = actors("test#Ingress#")
        began = threading.Event()
        with at_once(2) as pool:
            stream = pool.submit(tiny.stream, "stream", began=began, **LONG)
            whole = pool.submit(tiny.ask, "whole", **LONG)
            wait_until(lambda: began.is_set() and sum(stats.num_running for stats in tiny.all_stats()) == 2)
            os.kill(ingress.pid, signal.SIGKILL)
        told, given = stream.result(), whole.result()
        assert (told.status, told.is_done, told.error and told.error["code"]) == (200, False, "answer_lost")
        assert (given.status, given.error and given.error["code"]) == (503, "answer_lost")
        wait_until(lambda: tiny.ask("hello", max_tokens=4).status == 200)


def test_a_request_that_kills_its_replicas_is_given_up(url: str, tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"

    class Mortal(Watched):
        async def generate(self, job: Job) -> AsyncGenerator[Any, None]:
            async for item in super().generate(job):
                if "die" in str(job.prompts):
                    with deaths.open("a") as file:
                        file.write("x")
                    os._exit(1)
                yield item

    with serving(url, Mortal, engine="fake", num_replicas=1) as endpoint:
        told = endpoint.ask("die")
        assert told.status == 503
        assert told.error is not None
        assert told.error["code"] == "service_unavailable"
        # Serve repeats a call by itself when a replica dies before it has said that it takes it.
        assert 3 <= len(deaths.read_text()) <= 6
        assert endpoint.ask("live").text == "live"


@pytest.mark.soak
def test_a_stuck_engine_is_replaced(url: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    class StuckAtFirst(Watched):
        """Its first process gets stuck in its first pass."""

        def __init__(self, args: ModelArgs) -> None:
            super().__init__(args)
            engine: Any = self._engine
            engine._pulse.patience_s = 1.0
            if not (tmp_path / "was stuck").exists():
                (tmp_path / "was stuck").touch()
                engine._model.forward = lambda *passed: threading.Event().wait()

    with serving(url, StuckAtFirst, model=str(tiny_model_dir)) as endpoint:
        (pid,) = pids(endpoint)
        assert endpoint.ask("hello", max_tokens=4).status in (200, 503)
        wait_until(lambda: pid not in pids(endpoint) and endpoint.ask("hello", max_tokens=4).status == 200)


async def undivided(model: Path, messages: list[dict[str, str]], max_tokens: int) -> str:
    """The answer of the whole model in this process."""
    engine = build_engine("native", str(model), EngineOptions(device="cpu", num_threads=1))
    try:
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0)
        request = GenerationRequest("id", tuple(engine.encode_chat(messages)), sampling)
        return "".join([delta.text async for delta in engine.generate(request)])
    finally:
        engine.shutdown()


def test_a_dead_shard_fails_its_replica_which_is_replaced(url: str, tiny_model_dir: Path) -> None:
    fields = {"model": str(tiny_model_dir), "engine": "native", "num_threads": 1, "tensor_parallel_size": 2}
    with serving(url, **fields) as endpoint:
        expected = asyncio.run(undivided(tiny_model_dir, endpoint.body("hello")["messages"], max_tokens=12))
        (pid,) = pids(endpoint)
        (shard,) = (actor for actor in actors("") if actor.class_name == "_Shard")
        assert endpoint.ask("hello", max_tokens=12).text == expected
        os.kill(shard.pid, signal.SIGKILL)
        wait_until(lambda: pid not in pids(endpoint) and endpoint.ask("hello", max_tokens=12).text == expected)


def test_when_time_is_up_the_work_stops_and_the_place_is_free(url: str) -> None:
    limits = {"max_ongoing_requests": 1, "max_queued_requests": 4, "queue_timeout_s": 2, "request_timeout_s": 60}
    endless = "x" * 10_000
    with serving(url, Slow, engine="fake", **limits) as endpoint:
        soon = {"x-request-timeout": "1"}
        whole = endpoint.ask(endless, headers=soon)
        assert (whole.status, whole.error and whole.error["code"]) == (504, "deadline_exceeded")
        stream = endpoint.stream(endless, headers=soon)
        assert stream.status == 200
        assert (stream.is_done, stream.error and stream.error["code"]) == (False, "deadline_exceeded")
        assert stream.text
        assert endpoint.ask("free").text == "free"
        body = endpoint.body(endless, stream=True)
        with endpoint.client.stream("POST", "/v1/chat/completions", json=body) as first:
            lines = first.iter_lines()  # once it is let go of, the connection is closed
            assert next(lines).startswith("data: ")
            waited = endpoint.ask("too late")
            assert (waited.status, waited.error and waited.error["code"]) == (503, "queue_timeout")
