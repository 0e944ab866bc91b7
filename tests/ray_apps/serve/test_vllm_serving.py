"""The whole endpoint on vLLM, two shards to a replica: `make test-vllm`."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
from ray.util import placement_group_table

from ray_apps.serve.config_file import load_serve_file
from ray_apps.serve.run import serving
from tests.ray_apps.engine.contract import write_model
from tests.ray_apps.serve.endpoint import serve_cluster
from tests.vllm_processes import vllm_processes

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm
CONFIG = Path(__file__).parents[3] / "serve_config.yaml"
USER = {"role": "user", "content": "Who are you? 🙂"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    model = write_model(tmp_path_factory.mktemp("model"))
    fields = {"model": model, "model_name": "tiny", "engine": "vllm", "tensor_parallel_size": 2}
    fields["engine_args"] = "{enforce_eager: true}"
    settings = ["http_options.port=0", *(f"args.{name}={value}" for name, value in fields.items())]
    with serve_cluster(num_cpus=4, TORCH_COMPILE_DISABLE="1"), serving(load_serve_file(CONFIG, settings)) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def ask(client: openai.OpenAI, **fields: object) -> openai.types.chat.ChatCompletion:
    asked = {"model": "tiny", "messages": [USER], "max_tokens": 20, "temperature": 0, **fields}
    return client.chat.completions.create(**asked)  # type: ignore[call-overload,no-any-return]


def test_a_replica_has_one_placement_group_with_a_bundle_for_each_shard(client: openai.OpenAI) -> None:
    groups = [group for group in placement_group_table().values() if group["state"] == "CREATED"]
    assert [(group["strategy"], len(group["bundles"])) for group in groups] == [("STRICT_PACK", 2)]
    assert len({*vllm_processes("Worker")}) == 2
    assert ask(client).choices[0].finish_reason


def test_a_stream_adds_up_to_the_answer_in_one_piece(client: openai.OpenAI) -> None:
    whole = ask(client)
    asked = {"model": "tiny", "messages": [USER], "max_tokens": 20, "temperature": 0, "stream": True}
    chunks = list(client.chat.completions.create(**asked))  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= 20


def test_an_answer_follows_a_schema_and_is_told_with_log_probabilities(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    completion = ask(client, n=2, seed=1, temperature=1, max_tokens=200, logprobs=True, response_format=form)
    for choice in completion.choices:
        assert type(json.loads(choice.message.content or "")["ok"]) is bool
        assert choice.logprobs is not None
        written = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content or [])
        assert written.decode() == choice.message.content


def test_a_prompt_is_scored_and_embeddings_are_refused(client: openai.OpenAI) -> None:
    completion = client.completions.create(model="tiny", prompt="Who are you?", echo=True, logprobs=1, max_tokens=1)
    scores = completion.choices[0].logprobs
    assert scores is not None
    assert len(scores.token_logprobs or []) > 1
    with pytest.raises(openai.BadRequestError, match="gives no embeddings"):
        client.embeddings.create(model="tiny", input="Who are you?")


def cores() -> set[int]:
    return {process.pid for process in vllm_processes("EngineCore")}


@pytest.mark.timeout(600)
def test_a_replica_whose_engine_core_died_is_replaced(client: openai.OpenAI) -> None:
    expected = ask(client).choices[0].message.content
    (core,) = cores()
    psutil.Process(core).kill()
    deadline = time.monotonic() + 450  # vLLM may hang in its first step; such a replica is replaced too
    refusals: list[str] = []
    while core in cores() or not cores() or not answers(client, refusals):
        assert time.monotonic() < deadline, f"no replica took the place of the dead one: {refusals}"
        time.sleep(1)
    assert ask(client).choices[0].message.content == expected


def answers(client: openai.OpenAI, refusals: list[str]) -> bool:
    try:
        return bool(ask(client).choices)
    except openai.APIError as error:
        refusals.append(repr(error))
        return False
