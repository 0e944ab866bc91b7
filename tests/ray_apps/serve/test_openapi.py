"""The description of the API, and what schemathesis makes of it."""

from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from schemathesis.specs.openapi.checks import positive_data_acceptance

from ray_apps.engine.fake import FakeEngine
from ray_apps.serve.api import create_api
from ray_apps.serve.auth import ApiKeys
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.guards import guarded
from ray_apps.serve.metered import MeteredBackend
from ray_apps.serve.policy import Limits, Security
from ray_apps.serve.routing import ServedModel

BACKEND = MeteredBackend(EngineBackend(FakeEngine()), "fake", limits=Limits())
API = create_api([ServedModel("fake", BACKEND)])
APP = guarded(API, ApiKeys(), Security(allow_open=True), Limits())
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)


# What the description does not say: fields that exclude each other, prompts that are too long.
ALLOWED = [positive_data_acceptance]


@SCHEMA.parametrize()
def test_no_request_that_can_be_described_breaks_the_api_or_its_description(case: schemathesis.Case) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "fake"
    response = case.call_and_validate(excluded_checks=ALLOWED)  # raises for an answer that is not described
    assert response.status_code < 500


def test_every_route_describes_its_errors_in_openais_shape() -> None:
    for path, operations in API.openapi()["paths"].items():
        for method, operation in operations.items():
            shapes = {status: operation["responses"][status]["content"] for status in ("4XX", "5XX")}
            for content in shapes.values():
                assert content["application/json"]["schema"]["$ref"].endswith("/ErrorResponse"), (method, path)
            assert "422" not in operation["responses"]


CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TEXT = {"prompt": "hi"}
SIMPLE: dict[str, dict[str, Any]] = {"/v1/chat/completions": CHAT, "/v1/completions": TEXT, "/tokenize": {}}


def answer(path: str, fields: dict[str, Any]) -> tuple[bool, bool]:
    """Whether a body with `fields` is described, and whether it is accepted."""
    body = {"model": "fake", **SIMPLE[path], **fields}
    description = API.openapi()
    content = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    described = Draft202012Validator({**content["schema"], "components": description["components"]}).is_valid(body)
    return described, TestClient(APP).post(path, json=body).status_code == 200


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
        ("/v1/chat/completions", {"logit_bias": {"0": 1, "70": -100}, "stop": "x"}),
        ("/v1/chat/completions", {"functions": [], "function_call": "auto", "modalities": ["text"], "audio": None}),
        ("/v1/completions", {"prompt": [1, 2]}),
        ("/v1/completions", {"prompt": ["hi", [1, 2]], "suffix": ""}),
        ("/tokenize", CHAT),
        ("/tokenize", TEXT),
    ],
)
def test_every_form_of_a_field_is_described(path: str, fields: dict[str, Any]) -> None:
    assert answer(path, fields) == (True, True)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 3}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi", "refusal": ""}]}),
        ("/v1/chat/completions", {"logit_bias": {"1": 1, "01": 2}}),
        ("/v1/chat/completions", {"logit_bias": {str(token): 1 for token in range(1025)}}),
        ("/v1/chat/completions", {"audio": {}}),
        ("/v1/chat/completions", {"modalities": ["text", "audio"]}),
        ("/v1/completions", {"prompt": []}),
        ("/v1/completions", {"prompt": [[]]}),
        ("/v1/completions", {"prompt": ["hi"] * 257}),
        ("/v1/completions", {"suffix": "x"}),
    ],
)
def test_what_is_always_refused_is_not_described(path: str, fields: dict[str, Any]) -> None:
    assert answer(path, fields) == (False, False)
