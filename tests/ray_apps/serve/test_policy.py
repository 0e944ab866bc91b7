from typing import Any

import pytest

from data_prep.errors import ConfigError
from ray_apps.serve.config import ServeArgs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"security": {"keys": "x"}}, r"args\.security\.keys: unknown field"),
        ({"security": {"api_keys_file": "keys"}}, r"args\.security\.api_keys_file: 'keys' is not valid; .* absolute"),
        ({"security": {"api_keys_file": "s3://b/keys"}}, r"args\.security\.api_keys_file: .* path on a disk"),
        ({"security": {"cors_origins": "*"}}, r"args\.security\.cors_origins: '\*' is not valid"),
        ({"limits": {"max_body_bytes": 10}}, r"args\.limits\.max_body_bytes: 10 is not valid"),
        ({"limits": {"requests_per_minute": 0}}, r"args\.limits\.requests_per_minute: 0 is not valid"),
        ({"logging": {"requests": ""}}, r"args\.logging\.requests: '' is not valid"),
        ({"models": [{"model": "a", "limits": {}}]}, r"args\.models\.0\.limits: unknown field"),
    ],
)
def test_a_wrong_field_is_one_line_that_names_it(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeArgs.parse(fields, "args")


def test_by_default_nobody_else_may_ask_and_no_text_is_written_down() -> None:
    args = ServeArgs()
    assert not args.security.allow_open
    assert not args.security.cors_origins
    assert not args.logging.texts
