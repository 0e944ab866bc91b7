from typing import Any

import openai
import pytest

from ray_apps.engine.fake import FakeEngine
from tests.ray_apps.serve.conftest import Client

URL = "/v1/embeddings"


async def test_the_openai_client_gets_a_vector_for_each_text(api_client: Client) -> None:
    client = openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=api_client(), max_retries=0)
    packed = await client.embeddings.create(model="fake", input=["ab", "你好"])  # asks for base64
    plain = await client.embeddings.create(model="fake", input=["ab", "你好"], encoding_format="float", dimensions=16)
    assert [one.index for one in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert sum(value * value for value in one.embedding) == pytest.approx(1)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == len("ab你好".encode())
    assert packed.model == "fake"
    await client.close()


async def test_ids_are_the_same_as_their_text(api_client: Client) -> None:
    async with api_client() as client:
        found = [
            (await client.post(URL, json={"model": "fake", "input": given})).json()["data"][0]["embedding"]
            for given in ("ab", ["ab"], [97, 98], [[97, 98]])
        ]
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": []}, "input", "invalid_type"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": [[999]]}, "input", "invalid_value"),
        ({"input": "x" * 31}, "input", "context_length_exceeded"),
        ({"dimensions": 8}, "dimensions", "invalid_value"),
        ({"encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"model": "pirate"}, "model", "invalid_value"),
        ({"model": "other"}, "model", "model_not_found"),
        ({"truncate": "end"}, "truncate", "unknown_parameter"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    api_client: Client, fields: dict[str, Any], param: str, code: str
) -> None:
    async with api_client(FakeEngine(max_model_len=30, adapters=["pirate"]), adapters=("pirate",)) as client:
        response = await client.post(URL, json={"model": "fake", "input": "abc", **fields})
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert response.status_code == (404 if code == "model_not_found" else 400)


async def test_a_text_may_fill_the_whole_context(api_client: Client) -> None:
    async with api_client(FakeEngine(max_model_len=30)) as client:
        assert (await client.post(URL, json={"model": "fake", "input": "x" * 30})).status_code == 200
