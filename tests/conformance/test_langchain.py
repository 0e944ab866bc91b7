from typing import Any

import pytest

from tests.conformance.conftest import BIN, Programs, Served

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def told(programs: Programs, served: Served) -> dict[str, Any]:
    # LiteLLM brings the files that tiktoken would fetch.
    (encodings,) = (BIN.parent / "lib").glob("python*/site-packages/litellm/litellm_core_utils/tokenizers")
    return programs.ask("ask_langchain.py", served.url, served.directory, TIKTOKEN_CACHE_DIR=str(encodings))


def test_a_stream_adds_up_to_the_answer_in_one_piece(told: dict[str, Any]) -> None:
    assert told["text"]
    assert told["streamed"] == told["text"]
    assert told["usage"][1] == 12
    assert told["streamed_usage"] == told["usage"]
    assert told["logprobs"] == 12
    assert told["batched"] == [12] * 3


def test_answers_are_held_to_schemas_and_tools(told: dict[str, Any]) -> None:
    assert told["place"] in ("Köln", "Bonn")
    name, city = told["called"]
    assert name == "weather"
    assert city in ("Köln", "Bonn")
    assert told["after"] == 12


def test_a_chat_that_is_too_long_is_told_as_such(told: dict[str, Any]) -> None:
    kinds, *named = told["too_long"]
    assert "ModelInvalidRequestError" in kinds
    assert named == ["context_length_exceeded", "messages"]


def test_texts_are_embedded_as_they_are_or_cut_by_the_model_s_own_tokenizer(told: dict[str, Any]) -> None:
    assert [len(vector) for vector in told["embedded"]] == [64, 64]
    for vector, cut in zip(told["embedded"], told["cut_embedded"], strict=True):
        assert vector == pytest.approx(cut, abs=1e-5)


def test_ids_of_another_tokenizer_are_refused_and_not_embedded(told: dict[str, Any]) -> None:
    kinds, *named = told["ids_of_others"]
    assert kinds[0] == "BadRequestError"
    assert named == ["invalid_value", "input"]
