import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.tokenizer import load_tokenizer
from ray_apps.engine.grammar import Grammars
from ray_apps.engine.native.sampling import Sampler
from ray_apps.engine.protocol import MAX_SCHEMA_CHARACTERS, SamplingError, SamplingParams

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"enum": [1, 22, 333]}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def with_properties(number: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{index}": {"type": "string"} for index in range(number)}}


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> Any:
    return load_tokenizer(str(tiny_model_dir))


@pytest.fixture(scope="module")
def grammars(tokenizer: Any) -> Grammars:
    return Grammars(tokenizer, len(tokenizer), frozenset({tokenizer.eos_token_id}))


@pytest.mark.parametrize("seed", range(5))
def test_whatever_a_model_says_follows_the_schema(grammars: Grammars, tokenizer: Any, seed: int) -> None:
    sampling = SamplingParams(max_tokens=200, temperature=2.0, seed=seed)
    sampler = Sampler(sampling, (), torch.device("cpu"), grammars.compile(json.dumps(PERSON)))
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    while not tokens or tokens[-1] != tokenizer.eos_token_id:
        tokens.append(sampler.choose(torch.randn(len(tokenizer), generator=generator)).token)
        assert len(tokens) < 200
    answer = json.loads(tokenizer.decode(tokens[:-1]))
    assert set(answer) == {"name", "age"}
    assert len(answer["name"]) <= 5
    assert answer["age"] in (1, 22, 333)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ("{", "EOF|JSON|expected"),
        ('{"type": "wizard"}', "wizard"),
        ('{"$ref": "https://example.com/schema.json"}', "."),
        (json.dumps({"enum": ["x" * MAX_SCHEMA_CHARACTERS]}), f"valid: up to {MAX_SCHEMA_CHARACTERS}"),
        (json.dumps(with_properties(3000)), "more work than the limits allow: .*items"),
    ],
)
def test_what_is_no_schema_is_told(grammars: Grammars, schema: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        grammars.compile(schema)


def test_an_object_may_have_two_thousand_properties(grammars: Grammars, tokenizer: Any) -> None:
    grammar = grammars.compile(json.dumps(with_properties(2000)))
    for token in tokenizer('{"p1999":"', add_special_tokens=False).input_ids:
        assert grammar.apply(torch.zeros(len(tokenizer)))[token] == 0
        grammar.accept(token)


def test_a_limit_that_is_reached_within_an_answer_says_so(grammars: Grammars, tokenizer: Any) -> None:
    grammar = grammars.compile(json.dumps({"type": "array", "items": with_properties(3000)}))
    bracket, brace = tokenizer("[{", add_special_tokens=False).input_ids
    grammar.accept(bracket)
    with pytest.raises(SamplingError, match="more work than the limits allow") as caught:
        grammar.accept(brace)
    assert caught.value.param == "response_format"


def test_a_schema_that_is_nested_deeply_ends_no_process(grammars: Grammars) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    with suppress(ValueError):  # it may be too deep
        grammars.compile(json.dumps(schema))
    assert grammars.compile('{"type": "integer"}')
