import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.train.config import CheckpointSettings
from ray_apps.train.save_policy import SaveCosts, SavePolicy, best_interval_s

seconds = st.floats(0.001, 1e6)


def test_the_best_interval_is_young_s_where_saves_and_restarts_are_cheap() -> None:
    assert best_interval_s(1.0, 0.0, 1e6) == pytest.approx(math.sqrt(2 * 1.0 * 1e6), rel=1e-2)


@given(save_s=seconds, restart_s=seconds, between=seconds)
def test_the_best_interval_loses_less_than_its_neighbours(save_s: float, restart_s: float, between: float) -> None:
    """Useful time over elapsed time, where a failure costs the restart and half an interval."""
    best = best_interval_s(save_s, restart_s, between)

    def useful(interval: float) -> float:
        return (interval - save_s) / (interval * (1 + (restart_s + interval / 2) / between))

    assert useful(best) >= max(useful(best * 1.01), useful(best * 0.99)) * (1 - 1e-9)


@given(step=st.integers(1, 100), since=st.floats(0, 1e5))
def test_every_steps_and_every_seconds(step: int, since: float) -> None:
    by_steps = SavePolicy(CheckpointSettings(every_steps=7), num_steps=100)
    assert by_steps.is_due(step, since, None) == (step % 7 == 0 or step == 100)
    by_time = SavePolicy(CheckpointSettings(every_steps=None, every_s=60), num_steps=100)
    assert by_time.is_due(step, since, None) == (since >= 60 or step == 100)
    both = SavePolicy(CheckpointSettings(every_steps=7, every_s=60), num_steps=100)
    assert both.is_due(step, since, None) == (by_steps.is_due(step, since, None) or by_time.is_due(step, since, None))


def test_auto_measures_first_and_never_saves_faster_than_it_can() -> None:
    settings = CheckpointSettings(every_steps=None, every_s="auto", mean_time_between_preemptions_s=3600.0)
    policy = SavePolicy(settings, num_steps=100)
    assert policy.is_due(1, 0.1, None)
    assert not policy.is_due(2, 0.1, None, tried=True)
    assert policy.is_due(2, 61, None, tried=True)
    cheap, slow = SaveCosts(1.0, 10.0, 60.0), SaveCosts(0.01, 500.0, 0.0)
    interval = best_interval_s(1.0, 60.0, 3600.0)
    assert not policy.is_due(2, interval - 1, cheap)
    assert policy.is_due(2, interval + 1, cheap)
    assert not policy.is_due(2, 499, slow)
    assert policy.is_due(2, 501, slow)
