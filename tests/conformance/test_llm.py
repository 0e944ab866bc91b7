import json
from pathlib import Path

import pytest

from tests.conformance.conftest import KEY, Programs, Served

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def settings(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `llm` finds the endpoint among its models."""
    folder = tmp_path_factory.mktemp("llm")
    model = {
        "model_id": "ours",
        "model_name": "tiny",
        "api_base": served.url,
        "api_key_name": "ours",
        "supports_schema": True,
        "supports_tools": True,
    }
    # JSON is YAML.
    (folder / "extra-openai-models.yaml").write_text(json.dumps([model]))
    (folder / "keys.json").write_text(json.dumps({"ours": KEY}))
    return folder


def ask(programs: Programs, settings: Path, *arguments: str) -> str:
    # The demo's base model comes as a plug-in for `llm` that wants an engine of its own.
    return programs.run("llm", *arguments, LLM_USER_PATH=str(settings), LLM_LOAD_PLUGINS="")


def test_a_chat_goes_on(programs: Programs, settings: Path) -> None:
    options = ("-o", "temperature", "0", "-o", "max_tokens", "12")
    first = ask(programs, settings, "prompt", "-m", "ours", *options, "Who are you?")
    whole = ask(programs, settings, "prompt", "-m", "ours", *options, "--no-stream", "Who are you?")
    second = ask(programs, settings, "prompt", "-c", *options, "Are you sure?")
    assert first == whole != second
    logged = json.loads(ask(programs, settings, "logs", "list", "--json", "-n", "0"))
    assert [one["output_tokens"] for one in logged] == [12] * 3
    assert logged[0]["input_tokens"] == logged[1]["input_tokens"] < logged[2]["input_tokens"] - 12
    assert logged[1]["conversation_id"] == logged[2]["conversation_id"]


def test_an_answer_follows_a_schema(programs: Programs, settings: Path) -> None:
    fields = {"is_sure": {"type": "boolean"}}
    schema = {"type": "object", "properties": fields, "required": ["is_sure"], "additionalProperties": False}
    options = ("-o", "temperature", "0", "-o", "frequency_penalty", "2", "-o", "max_tokens", "300")
    answer = ask(programs, settings, "prompt", "-m", "ours", *options, "--schema", json.dumps(schema), "Are you sure?")
    assert json.loads(answer)["is_sure"] in (True, False)
