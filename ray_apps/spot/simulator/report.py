"""`vicuna spot simulate`: what a policy would have cost, as a table, as JSON and as a plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.table import Table

from data_prep.config import Settings
from data_prep.errors import ConfigError
from ray_apps.config import apply_overrides
from ray_apps.console import console
from ray_apps.spot.policy import PolicySettings
from ray_apps.spot.pricing import read_egress
from ray_apps.spot.simulator.compare import Line, compare, windows
from ray_apps.spot.simulator.job import SimulatedJob
from ray_apps.spot.simulator.plot import draw
from ray_apps.spot.simulator.traces import read_traces

BUCKETS = ("productive_h", "recovery_h", "save_h", "wasted_h", "waiting_h")


class Scenario(Settings):
    """What a simulation is told, as `job.key=value` and `policy.key=value`."""

    job: SimulatedJob = Field(default_factory=lambda: SimulatedJob())
    policy: PolicySettings = Field(default_factory=lambda: PolicySettings())


def report(
    traces: Sequence[Path],
    overrides: Sequence[str],
    *,
    base: Mapping[str, Any],
    starts_h: Sequence[float],
    egress: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Simulate, from each of the starts, and tell. `base`: settings that `overrides` go before.

    Raises:
        ConfigError: a setting is wrong.
        DataError: a trace is, or it ends before the deadline.
    """
    scenario = Scenario.parse(apply_overrides(dict(base), overrides))
    deadline_h = scenario.policy.deadline_h
    if not traces:
        raise ConfigError("TRACES: none are given; expected CSV files, one for each zone")
    read = [trace.scaled(scenario.job.price_scale) for trace in read_traces(traces)]
    covered = len(read[0].available) * read[0].step_h
    parts = windows(read, starts_h, deadline_h) if deadline_h else windows(read, starts_h, covered - max(starts_h))
    lines = compare(scenario.job, scenario.policy, parts, read_egress(egress) if egress else {})
    if as_json:
        print(json.dumps([as_dict(line) for line in lines]))
    else:
        show(lines, scenario, len(parts))
    if plot is not None:
        draw(plot, parts[0], [(line.name, line.outcomes[0].path) for line in lines if line.outcomes][:2])
        console.print(f"the path of the first window: {plot}", soft_wrap=True)


def as_dict(line: Line) -> dict[str, Any]:
    """Means over the windows, and the dollars of each."""
    means = {name: round(line.mean(name), 4) for name in _FIGURES} if line.outcomes else {}
    return {"name": line.name, "usd": [round(usd, 4) for usd in line.usd], "num_late": line.num_late, **means}


_FIGURES = (
    "wall_h",
    "paid_h",
    "on_demand_h",
    "egress_usd",
    "num_migrations",
    "num_preemptions",
    "goodput_per_paid_hour",
    "goodput_per_wall_hour",
    *BUCKETS,
)


def show(lines: Sequence[Line], scenario: Scenario, num_windows: int) -> None:
    """Print the comparison."""
    job, deadline_h = scenario.job, scenario.policy.deadline_h
    by = "without a deadline" if deadline_h is None else f"to be done in {deadline_h:g} h"
    means = f"; means of {num_windows} windows" if num_windows > 1 else ""
    console.print(
        f"{job.work_h:g} h of training {by}{means}; on demand ${job.on_demand_usd_per_hour:g}/h.",
        soft_wrap=True,
    )
    console.print(_costs(lines))
    console.print("\nWhere the hours went; goodput per paid and per wall-clock hour")
    console.print(_hours(lines))


def _costs(lines: Sequence[Line]) -> Table:
    on_demand = next(line.mean_usd for line in lines if line.name == "on demand")
    table = _table("", "$", "saved", "hours", "late", "migrations", "preemptions", "egress $")
    for line in lines:
        row = [line.name, f"{line.mean_usd:.2f}", f"{1 - line.mean_usd / on_demand:.0%}"]
        if line.outcomes:
            figures = [line.mean(name) for name in ("num_migrations", "num_preemptions", "egress_usd")]
            row += [f"{line.mean('wall_h'):.1f}", str(line.num_late), *(f"{figure:.1f}" for figure in figures)]
        table.add_row(*row)
    return table


def _hours(lines: Sequence[Line]) -> Table:
    table = _table("", *(name.removesuffix("_h") for name in BUCKETS), "paid", "wall")
    for line in (line for line in lines if line.outcomes):
        hours = [f"{line.mean(name):.2f}" for name in BUCKETS]
        shares = [f"{line.mean(name):.3f}" for name in ("goodput_per_paid_hour", "goodput_per_wall_hour")]
        table.add_row(line.name, *hours, *shares)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table
