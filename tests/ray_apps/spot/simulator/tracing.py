"""Traces for tests."""

from collections.abc import Sequence
from datetime import datetime

from hypothesis import strategies as st

from ray_apps.spot.simulator.traces import Trace

START = datetime(2024, 1, 1)


def trace(
    zone: str, available: Sequence[bool] | str, price: float | Sequence[float] = 1.0, step_h: float = 0.5
) -> Trace:
    """`available`: booleans, or a string in which `#` is a step with machines."""
    there = tuple(one in (True, "#") for one in available)
    prices = (price,) * len(there) if isinstance(price, float) else tuple(price)
    return Trace(zone, START, step_h, there, prices)


@st.composite
def any_traces(draw: st.DrawFn, num_steps: int = 60) -> list[Trace]:
    """One to three zones, with machines for stretches of any length, at prices that change."""
    zones = ["us-east-1a", "us-east-1b", "us-west-2a"][: draw(st.integers(1, 3))]
    return [trace(zone, draw(_available(num_steps)), draw(_prices(num_steps))) for zone in zones]


def _available(num_steps: int) -> st.SearchStrategy[list[bool]]:
    return _stretches(st.booleans(), num_steps)


def _prices(num_steps: int) -> st.SearchStrategy[list[float]]:
    return _stretches(st.sampled_from([0.5, 0.7, 1.0, 1.3]), num_steps)


def _stretches(values: st.SearchStrategy, num_steps: int) -> st.SearchStrategy:
    pieces = st.lists(st.tuples(values, st.integers(1, 25)), min_size=1, max_size=12)
    return pieces.map(lambda pairs: ([value for value, length in pairs * num_steps for _ in range(length)])[:num_steps])
