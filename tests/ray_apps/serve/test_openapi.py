"""The description of the API, and what schemathesis makes of it."""

import schemathesis
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

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


# What the description does not say: fields that exclude each other, prompts that are too long, other forms of a field.
ALLOWED = [positive_data_acceptance, negative_data_rejection]


@SCHEMA.parametrize()
def test_no_request_that_can_be_described_breaks_the_api_or_its_description(case: schemathesis.Case) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "fake"
    case.call_and_validate(excluded_checks=ALLOWED)


def test_every_route_describes_its_errors_in_openais_shape() -> None:
    for path, operations in API.openapi()["paths"].items():
        for method, operation in operations.items():
            shapes = {status: operation["responses"][status]["content"] for status in ("4XX", "5XX")}
            for content in shapes.values():
                assert content["application/json"]["schema"]["$ref"].endswith("/ErrorResponse"), (method, path)
            assert "422" not in operation["responses"]
