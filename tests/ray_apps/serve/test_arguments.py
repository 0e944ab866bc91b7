from typing import Any

import pytest

from data_prep.errors import ConfigError
from ray_apps.serve.arguments import read_arguments
from ray_apps.serve.config import ServeArgs


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        ({"model": "DIR", "num_replicas": "2"}, {"model": "DIR", "num_replicas": 2}),
        ({"model": "7", "model_name": "true"}, {"model": "7", "model_name": "true"}),
        ({"request_timeout_s": "null", "queue_timeout_s": "1.5"}, {"request_timeout_s": None, "queue_timeout_s": 1.5}),
        ({"aliases": "[a, b]", "adapters": "{x: dir}"}, {"aliases": ["a", "b"], "adapters": {"x": "dir"}}),
        (
            {"autoscaling.min_replicas": "0", "autoscaling.max_replicas": "3"},
            {"autoscaling": {"min_replicas": 0, "max_replicas": 3}},
        ),
        (
            {"models": "[{model: a}, {model: b, num_replicas: 2}]"},
            {"models": [{"model": "a"}, {"model": "b", "num_replicas": 2}]},
        ),
    ],
)
def test_texts_of_the_command_line_become_what_they_say(texts: dict[str, str], values: dict[str, Any]) -> None:
    assert read_arguments(texts) == values
    ServeArgs.parse(read_arguments(texts), "args")


def test_what_a_file_says_is_left_alone() -> None:
    args = {"model": "DIR", "num_replicas": 2, "dtype": "auto"}
    assert read_arguments(args) == args


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ConfigError, match=r"args\.num_replicas: 'two'"):
        ServeArgs.parse(read_arguments({"num_replicas": "two"}), "args")
    with pytest.raises(ConfigError, match=r"args\.modle: unknown field; did you mean 'model'"):
        ServeArgs.parse(read_arguments({"modle": "x"}), "args")
    with pytest.raises(ConfigError, match="adapters"):
        read_arguments({"adapters": "{x"})
