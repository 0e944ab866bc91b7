from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from data_prep.errors import ConfigError
from ray_apps.serve.scaling import Autoscaling


def test_replicas_are_three_quarters_full_unless_told_otherwise() -> None:
    assert Autoscaling().for_serve(16)["target_ongoing_requests"] == 12
    assert Autoscaling(target_ongoing_requests=3).for_serve(16)["target_ongoing_requests"] == 3


@pytest.mark.parametrize("fields", [{}, {"min_replicas": 0, "initial_replicas": 1, "max_replicas": 3}])
def test_serve_takes_all_fields(fields: dict[str, Any]) -> None:
    settings = Autoscaling(**fields)
    taken = AutoscalingConfig(**settings.for_serve(16))
    assert taken.min_replicas == settings.min_replicas
    assert (taken.upscale_delay_s, taken.downscale_delay_s) == (10, 300)
    assert taken.metrics_interval_s == 1


@pytest.mark.filterwarnings("error::FutureWarning")
def test_serve_is_told_of_the_load_several_times_in_a_short_look_back() -> None:
    taken = AutoscalingConfig(**Autoscaling(look_back_period_s=0.5).for_serve(16))
    assert taken.metrics_interval_s == 0.25


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_replicas": 2}, r"max_replicas: 1 is not valid"),
        ({"min_replicas": 3, "max_replicas": 2}, r"max_replicas: 2 is not valid; expected min_replicas \(3\) or more"),
        ({"max_replicas": 2, "initial_replicas": 3}, r"initial_replicas: 3 is not valid; .* \(0|1\) to max_replicas"),
        ({"max_replicas": 0}, r"max_replicas: 0"),
    ],
)
def test_counts_that_contradict_each_other_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Autoscaling.parse(fields)
