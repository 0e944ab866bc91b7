"""Whatever a keyword is given, the meta-schema in one piece says of it what jsonschema's own says."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema_specifications import REGISTRY

from ray_apps.serve.meta_schema import check_schema

URI = "https://json-schema.org/draft/2020-12/"
VOCABULARIES = ["core", "applicator", "unevaluated", "validation", "meta-data", "format-annotation", "content"]
PARTS = [REGISTRY.contents(URI + name) for name in ("schema", *(f"meta/{name}" for name in VOCABULARIES))]
VALUES: list[Any] = [None, True, -1, 0, 1.5, 3, "x", "string", "#", [], {}, [1], ["a"], ["string"], [{}], {"a": 1}]
VALUES += [{"a": ["b"]}, {"a": {}}, {"a": True}, {"type": "x"}, [{"type": "x"}], {"a": {"type": "x"}}]


@pytest.mark.parametrize("keyword", [keyword for part in PARTS for keyword in part["properties"]])
def test_a_keyword_takes_what_the_draft_lets_it_take(keyword: str) -> None:
    for schema in [{keyword: value} for value in VALUES]:
        for nested in (schema, {"items": {"allOf": [schema]}}):
            expected = Draft202012Validator(Draft202012Validator.META_SCHEMA).is_valid(nested)
            assert is_valid(nested) == expected, nested


def is_valid(schema: dict[str, Any]) -> bool:
    try:
        check_schema(schema)
    except SchemaError:
        return False
    return True
