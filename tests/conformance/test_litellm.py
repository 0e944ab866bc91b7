import json
from typing import Any

import pytest

from tests.conformance.conftest import Programs, Served

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def told(programs: Programs, served: Served) -> dict[str, Any]:
    return programs.ask("ask_litellm.py", served.url)


def test_a_stream_adds_up_to_the_answer_in_one_piece(told: dict[str, Any]) -> None:
    assert told["text"]
    assert told["streamed"] == told["text"]
    assert told["finish_reason"] == "length"
    assert told["usage"][1] == 12
    assert told["streamed_usage"] == [told["usage"]]


def test_answers_are_held_to_schemas_and_tools(told: dict[str, Any]) -> None:
    assert json.loads(told["held"])["city"] in ("Köln", "Bonn")
    reason, name, arguments = told["called"]
    assert (reason, name) == ("tool_calls", "weather")
    assert json.loads(arguments)["city"] in ("Köln", "Bonn")


def test_completions_and_embeddings_are_read(told: dict[str, Any]) -> None:
    assert told["completed"] == [3, "length"]
    assert told["embedded"] == [64, 64]


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("unknown", "NotFoundError"),
        ("too_long", "ContextWindowExceededError"),
        ("wrong", "BadRequestError"),
        ("not_allowed", "AuthenticationError"),
    ],
)
def test_errors_are_the_ones_it_has_names_for(told: dict[str, Any], what: str, kind: str) -> None:
    assert told[what] == kind
