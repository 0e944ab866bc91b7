import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.serve.protocol.strict_json import MAX_DEPTH, MAX_PARTS, parse_json

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(values, st.booleans())
def test_json_is_read_as_the_standard_library_reads_it(value: Any, escaped: bool) -> None:
    text = json.dumps(value, ensure_ascii=escaped)
    try:
        body = text.encode()
    except UnicodeEncodeError:
        return
    assert parse_json(body) == value


@given(st.binary(max_size=50))
def test_any_bytes_are_json_or_the_one_error_that_says_they_are_not(body: bytes) -> None:
    try:
        value = parse_json(body)
    except json.JSONDecodeError:
        return
    assert value == json.loads(body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "more than 24 digits"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"b": {"a": 1, "a": 1}}', "twice"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "64 levels"),
        (b"[" * 100_000, "64 levels"),
        (b'{"a":' * 100_000, "64 levels"),
        (b"[" * 100_000 + b"]" * 100_000, "64 levels"),
        (json.dumps([{}] * (MAX_PARTS + 1)).encode(), "10000 objects and lists"),
        (json.dumps([[[]]] * (MAX_PARTS // 2 + 1)).encode(), "10000 objects and lists"),
        (json.dumps(dict.fromkeys(map(str, range(MAX_PARTS + 1)))).encode(), "10000 names"),
        (b'{"a": 1', "delimiter"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_no_json_is_told_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(json.JSONDecodeError, match=reason):
        parse_json(body)


def test_the_deepest_that_is_taken() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert parse_json(b'{"a": "' + b"[" * 1000 + b'"}')


def test_the_most_that_is_taken() -> None:
    parts = [{}] * MAX_PARTS
    assert parse_json(json.dumps(parts).encode()) == parts
    assert len(parse_json(json.dumps(list(range(500_000))).encode())) == 500_000
