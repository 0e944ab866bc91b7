"""What a JSON schema may look like: the meta-schema of draft 2020-12 in one piece.

Without its dynamic references it takes a tenth of the time. Neither formats nor uniqueness are looked at: to compile a
pattern as one of Python's, or to compare all values of a list, may take longer than any request is worth, and whoever
follows a schema has its own rules for patterns.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema_specifications import REGISTRY

_URI = "https://json-schema.org/draft/2020-12/"


def check_schema(schema: dict[str, Any]) -> None:
    """Return if `schema` is a JSON schema.

    Raises:
        jsonschema.exceptions.SchemaError: it is none; the first reason that is found.
    """
    for error in _VALIDATOR.iter_errors(schema):
        raise SchemaError.create_from(error)


def _in_one_piece() -> dict[str, Any]:
    whole: dict[str, Any] = {"type": ["object", "boolean"], "properties": {}, "$defs": {}}
    for part in _parts():
        for name in ("properties", "$defs"):
            whole[name] |= part.get(name, {})
    return whole


def _parts() -> Iterator[dict[str, Any]]:
    """The meta-schema and its vocabularies, all of which refer to the whole."""
    names = ["schema", *(part["$ref"] for part in REGISTRY.contents(f"{_URI}schema")["allOf"])]
    for name in names:
        text = json.dumps(REGISTRY.contents(_URI + name))
        text = text.replace('"$dynamicRef": "#meta"', '"$ref": "#"').replace(
            '"uniqueItems": true', '"uniqueItems": false'
        )
        yield json.loads(re.sub(r'"meta/[a-z-]+#', '"#', text))


_VALIDATOR = Draft202012Validator(_in_one_piece())
