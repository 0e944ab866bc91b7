import time
from contextlib import suppress

import pytest

from ray_apps.engine.native.pulse import Pulse


def test_only_a_step_under_way_can_be_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pulse = Pulse(patience_s=10)
    now = 100.0
    assert not pulse.is_stuck
    with pulse:
        assert not pulse.is_stuck
        now = 110.0
        assert not pulse.is_stuck
        now = 110.5
        assert pulse.is_stuck
    assert not pulse.is_stuck


def test_a_step_that_fails_has_ended() -> None:
    pulse = Pulse(patience_s=-1)
    with suppress(ValueError), pulse:
        assert pulse.is_stuck
        raise ValueError
    assert not pulse.is_stuck
