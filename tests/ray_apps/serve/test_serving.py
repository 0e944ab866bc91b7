"""The whole endpoint: Serve on a loopback port, asked with the real OpenAI client."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from ray import serve

from data_prep.errors import ServeError
from ray_apps.serve.config_file import ServeFile, load_serve_file
from ray_apps.serve.run import serving
from tests import tiny as tiny_models
from tests.ray_apps.engine.native.test_adapters import write_adapter
from tests.ray_apps.serve import endpoint

pytestmark = pytest.mark.ray
CONFIG = Path(__file__).parents[3] / "serve_config.yaml"
USER = {"role": "user", "content": "Who are you? 🙂"}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with endpoint.serve_cluster(num_cpus=4):
        yield


@pytest.fixture(scope="class")
def client(cluster: None, tiny_model_dir: Path) -> Iterator[openai.OpenAI]:
    limits = {"max_ongoing_requests": 1, "max_queued_requests": 1, "max_model_len": 4_000_000}
    models = [
        {"model": str(tiny_model_dir), "model_name": "org/tiny", "aliases": ["tiny"]},
        {"engine": "fake", "model": "fake", **limits},
    ]
    application = {"import_path": "ray_apps.serve.app:build_app", "args": {"models": models}}
    with serving(ServeFile.parse({"http_options": {"port": 0}, "applications": [application]})) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


class TestOnTwoModels:
    """A tiny one, and one that echoes a character at a time: a long message takes as long as a test needs."""

    def test_it_is_ready_when_serving_begins(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["org/tiny", "tiny", "fake"]
        assert client.models.retrieve("org/tiny").id == "org/tiny"

    def test_models_are_asked_by_name(self, client: openai.OpenAI) -> None:
        echoed = client.chat.completions.create(model="fake", messages=[USER])
        assert (echoed.model, echoed.choices[0].message.content) == ("fake", USER["content"])
        answered = client.chat.completions.create(model="tiny", messages=[USER], max_tokens=2)
        assert (answered.model, answered.usage and answered.usage.completion_tokens) == ("org/tiny", 2)

    @pytest.mark.parametrize("fields", [{"temperature": 0}, {"seed": 1}, {"seed": 2, "top_p": 0.9, "stop": ["a"]}])
    def test_a_stream_adds_up_to_the_answer_in_one_piece(self, client: openai.OpenAI, fields: dict[str, Any]) -> None:
        asked = {"model": "tiny", "messages": [USER], "max_tokens": 40, **fields}
        whole = client.chat.completions.create(**asked)
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
        assert "".join(pieces) == whole.choices[0].message.content
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        usage, before = chunks[-1].usage, whole.usage
        assert usage is not None
        assert before is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (before.prompt_tokens, before.completion_tokens)
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1

    def test_answers_side_by_side_are_those_given_alone(self, client: openai.OpenAI) -> None:
        def answer(number: int) -> str | None:
            messages = [{"role": "user", "content": f"What is {number} plus {number}?"}]
            asked = {"model": "tiny", "messages": messages, "max_tokens": 10 + number, "temperature": 0}
            return client.chat.completions.create(**asked).choices[0].message.content

        alone = [answer(number) for number in range(12)]
        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(answer, range(12))) == alone

    def test_an_answer_follows_a_schema_and_is_told_with_log_probabilities(self, client: openai.OpenAI) -> None:
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
        schema["additionalProperties"] = False  # type: ignore[assignment]
        completion = client.chat.completions.create(
            model="tiny",
            messages=[USER],
            n=2,
            seed=1,
            logprobs=True,
            top_logprobs=2,
            response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        )
        for choice in completion.choices:
            assert choice.finish_reason == "stop"
            assert type(json.loads(choice.message.content or "")["ok"]) is bool
            assert choice.logprobs is not None
            written = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content or [])
            assert written.decode() == choice.message.content
        unknown = {"name": "answer", "schema": {"type": "wizard"}}
        with pytest.raises(openai.BadRequestError, match="wizard") as wrong:
            client.chat.completions.create(
                model="tiny", messages=[USER], response_format={"type": "json_schema", "json_schema": unknown}
            )
        assert wrong.value.param == "response_format"

    def test_json_mode_gives_an_object(self, client: openai.OpenAI) -> None:
        """The model is led to end it soon, for by itself it writes at random and for long."""
        told = httpx.post(
            f"{str(client.base_url).removesuffix('/v1/')}/tokenize", json={"model": "tiny", "prompt": "}"}
        )
        (brace,) = told.json()["tokens"]
        for seed in range(3):
            completion = client.chat.completions.create(
                model="tiny",
                messages=[USER],
                seed=seed,
                logit_bias={str(brace): 8},
                response_format={"type": "json_object"},
            )
            assert completion.choices[0].finish_reason == "stop"
            assert type(json.loads(completion.choices[0].message.content or "")) is dict

    def test_errors_are_those_that_the_client_knows(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="gpt-4o", messages=[USER])
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as wrong:
            client.chat.completions.create(model="tiny", messages=[USER], n=10_000)
        assert wrong.value.param == "n"
        with pytest.raises(openai.BadRequestError) as long:
            client.chat.completions.create(model="tiny", messages=[USER], max_tokens=512, stream=True)
        assert long.value.code == "context_length_exceeded"

    def echo(self, client: openai.OpenAI, text: str, **fields: Any) -> Any:
        return client.chat.completions.create(model="fake", messages=[{"role": "user", "content": text}], **fields)

    def test_a_client_that_leaves_makes_room_for_the_next(self, client: openai.OpenAI) -> None:
        endless = "x" * 1_000_000
        with self.echo(client, endless, stream=True) as stream:
            assert next(iter(stream)).choices
        assert self.echo(client, "after a stream").choices[0].message.content == "after a stream"
        with pytest.raises(openai.APITimeoutError):
            self.echo(client, endless, timeout=1)
        assert self.echo(client, "after a wait").choices[0].message.content == "after a wait"

    def test_a_full_queue_is_a_429_and_the_endpoint_stays_healthy(self, client: openai.OpenAI) -> None:
        def outcome(_: int) -> tuple[int, str | None, str | None]:
            try:
                self.echo(client, "x" * 2000)
            except openai.APIStatusError as error:
                return error.status_code, error.code, error.response.headers.get("retry-after")
            return 200, None, None

        with ThreadPoolExecutor(6) as pool:
            outcomes = pool.map(outcome, range(6))
            assert httpx.get(str(client.base_url).replace("/v1/", "/health")).status_code == 200
        assert set(outcomes) == {(200, None, None), (429, "rate_limit_exceeded", "1")}


def test_a_model_that_does_not_load_is_one_clear_line(tiny_model_dir: Path) -> None:
    overrides = ["http_options.port=0", f"args.model={tiny_model_dir}", "args.max_model_len=100000"]
    loading = serving(load_serve_file(CONFIG, overrides))
    with pytest.raises(ServeError, match=r"^args.max_model_len: 100000 is not valid; .* at most 512 tokens$"), loading:
        pass


@pytest.fixture
def serve_url(cluster: None) -> Iterator[str]:
    yield endpoint.start_serve()
    serve.shutdown()


def test_adapters_answer_side_by_side_as_alone_and_stay_where_they_are_held(serve_url: str, tmp_path: Path) -> None:
    base = tiny_models.write_model(tmp_path / "base", initializer_range=0.2, dtype="float32")
    names = ["a", "b", "c"]
    for seed, name in enumerate(names):
        write_adapter(base, tmp_path / name, seed=seed)
    fields: dict[str, Any] = {"engine": "native", "num_replicas": 2, "num_threads": 1, "max_loaded_adapters": 1}
    adapters = {name: str(tmp_path / name) for name in names}
    with endpoint.serving(serve_url, model=str(base), adapters=adapters, **fields) as served:

        def answer(name: str) -> str:
            return served.ask("hello", model=name, max_tokens=12).text

        def goes_to_one(name: str, run: int) -> bool:
            """Of 12 new chats."""
            before = [stats.num_prompt_tokens for stats in served.all_stats()]
            for number in range(12):
                served.ask(f"{number} of {run}", model=name, max_tokens=1)
            return any(stats.num_prompt_tokens == old for stats, old in zip(served.all_stats(), before, strict=True))

        alone = {name: answer(name) for name in ["m", *names]}
        assert len(set(alone.values())) == 4
        with ThreadPoolExecutor(16) as pool:
            asked = ["m", *names] * 8
            assert list(pool.map(answer, asked)) == [alone[name] for name in asked]
        assert served.ask("hello", model="nobody").status == 404
        assert not goes_to_one("m", 0)
        runs = iter(range(1, 100))

        def settles() -> bool:
            """Both replicas may hold one adapter, and then both are asked; another's request takes one of them away."""
            answer("b")
            time.sleep(0.5)  # until the ingress has heard of it
            return goes_to_one("a", next(runs))

        endpoint.wait_until(settles)
