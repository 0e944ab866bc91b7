"""What counts as JSON in a request."""

import json
from typing import Any, NoReturn

MAX_DEPTH = 64
"""Levels of objects and lists in a body, schemas included."""
MAX_PARTS = 10_000
"""Objects and lists in a body, and names in one object. Each costs some 20 microseconds on the way to a model."""
_MAX_DIGITS = 24


def parse_json(body: bytes) -> Any:
    """The value of a JSON text as RFC 8259 has it: UTF-8, no NaN, no name twice in an object, and bounded in shape.

    Raises:
        json.JSONDecodeError: it is none; the message says why.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError("it is not UTF-8", "", error.start) from None
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise json.JSONDecodeError(f"it has more than {MAX_DEPTH} levels", "", 0) from None
    check_shape([value])
    return value


def check_shape(values: list[Any]) -> None:
    """Return if the JSON `values` have no more levels than one may have, nor more objects and lists in all.

    Raises:
        json.JSONDecodeError: they have; the message says which.
    """
    level, num_parts = values, 0
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        level = [inner for outer in level for inner in _inside(outer)]
        num_parts += len(level)
        if num_parts > MAX_PARTS:
            raise json.JSONDecodeError(f"it has more than {MAX_PARTS} objects and lists", "", 0)
    raise json.JSONDecodeError(f"it has more than {MAX_DEPTH} levels", "", 0)


def _inside(value: Any) -> list[Any]:
    """The objects and lists directly within `value`."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [one for one in inner if isinstance(one, dict | list)]


def _as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_PARTS:
        raise json.JSONDecodeError(f"an object has more than {MAX_PARTS} names", "", 0)
    value = dict(pairs)
    if len(value) < len(pairs):
        raise json.JSONDecodeError("a name is there twice in one object", "", 0)
    return value


def _as_integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise json.JSONDecodeError(f"a number has more than {_MAX_DIGITS} digits", "", 0)
    return int(digits)


def _as_float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise json.JSONDecodeError("a number is too large", "", 0)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is no number of JSON", "", 0)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_as_object,
    parse_int=_as_integer,
    parse_float=_as_float,
    parse_constant=_refuse_constant,
)
