"""A picture of a simulation: when each zone had machines, and where the run was. A self-contained SVG."""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from ray_apps.spot.simulator.simulate import Place
from ray_apps.spot.simulator.traces import Trace

Value = TypeVar("Value")

_LEFT, _WIDTH, _BAND, _GAP, _TOP = 150, 800, 22, 8, 28
_THERE, _AWAY = "#bfe3c8", "#f1f1f1"
_COLOURS = {"spot": "#1b6e3c", "on_demand": "#c4502b"}


def draw(path: Path, traces: Sequence[Trace], runs: Sequence[tuple[str, Sequence[Place | None]]]) -> None:
    """Write bands of availability, and on them the path of each run. Replaces the file only when all is written."""
    part = path.with_name(f".{path.name}.part")
    part.write_text("\n".join(_svg(traces, runs)), encoding="utf-8")
    part.replace(path)


def _svg(traces: Sequence[Trace], runs: Sequence[tuple[str, Sequence[Place | None]]]) -> Iterator[str]:
    num_steps, step_h = len(traces[0].available), traces[0].step_h
    block = len(traces) * (_BAND + _GAP) + 2 * _GAP + _TOP
    height = len(runs) * block + 50
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 20}" height="{height}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    )
    for number, (name, steps) in enumerate(runs):
        top = number * block
        yield f'<text x="8" y="{top + 18}" font-weight="bold">{escape(name)}</text>'
        for row, trace in enumerate(traces):
            y = top + _TOP + row * (_BAND + _GAP)
            yield f'<text x="8" y="{y + 15}">{escape(trace.zone)}</text>'
            for is_there, first, last in _spans(trace.available):
                yield _bar(first, last, num_steps, y, _BAND, _THERE if is_there else _AWAY)
            ours = [place[1] if place is not None and place[0] == trace.zone else "" for place in steps]
            for purchase, first, last in _spans(ours):
                if purchase:
                    yield _bar(first, last, num_steps, y + 6, _BAND - 12, _COLOURS[purchase])
    yield from _axis(num_steps * step_h, len(runs) * block)
    yield "</svg>"


def _spans(values: Sequence[Value]) -> Iterator[tuple[Value, int, int]]:
    """Each run of equal values, with the steps it begins and ends at."""
    first = 0
    for value, group in groupby(values):
        last = first + sum(1 for _ in group)
        yield value, first, last
        first = last


def _bar(first: int, last: int, num_steps: int, y: float, height: float, colour: str) -> str:
    x, width = _LEFT + _WIDTH * first / num_steps, _WIDTH * (last - first) / num_steps
    return f'<rect x="{x:.1f}" y="{y}" width="{max(width, 0.4):.1f}" height="{height}" fill="{colour}"/>'


def _axis(hours: float, y: float) -> Iterator[str]:
    every = next(step for step in (1, 2, 6, 12, 24, 48, 120, 240, 480) if hours / step <= 14 or step == 480)
    for hour in range(0, int(hours) + 1, every):
        x = _LEFT + _WIDTH * hour / hours
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{y}" stroke="#0002"/>'
        yield f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle">{hour} h</text>'
    legend = (
        ("a spot machine can be had", _THERE),
        ("on spot", _COLOURS["spot"]),
        ("on demand", _COLOURS["on_demand"]),
    )
    for number, (words, colour) in enumerate(legend):
        x = _LEFT + 200 * number
        yield f'<rect x="{x}" y="{y + 26}" width="14" height="14" fill="{colour}"/>'
        yield f'<text x="{x + 20}" y="{y + 38}">{words}</text>'
