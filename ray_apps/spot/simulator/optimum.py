"""What a run must cost at the least when everything is known beforehand: a lower bound, by dynamic programming."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_apps.spot.simulator.job import SimulatedJob
from ray_apps.spot.simulator.traces import Trace

Costs = NDArray[np.float64]


@dataclass(frozen=True)
class _Place:
    """Where a machine may be. `usd`: its price in each step of `step_h` hours, infinite where there is none."""

    zone: str
    usd: Costs


def optimum_usd(
    job: SimulatedJob,
    traces: Sequence[Trace],
    deadline_h: float,
    egress: Mapping[tuple[str, str], float] | None = None,
    *,
    on_demand: bool = True,
) -> float:
    """Dollars below which no policy that starts and stops at steps can do the work by the deadline.

    Saves cost nothing, nothing is lost, and work and cold starts are rounded down to whole steps, which can only make
    it cheaper. Infinite if it cannot be done at all.

    Shapes: for each zone and purchase, costs to go of `[steps of the cold start that are left + 1, steps of work + 1]`.
    """
    step_h = traces[0].step_h
    num_steps = min(len(traces[0].available), int(deadline_h / step_h + 1e-9))
    work, cold = int(job.work_h / step_h + 1e-9), int(job.cold_start_h / step_h + 1e-9)
    places = [_Place(trace.zone, step_h * _spot_prices(trace)) for trace in traces]
    if on_demand:
        price = np.full(len(traces[0].available), step_h * job.on_demand_usd_per_hour)
        places += [_Place(trace.zone, price) for trace in traces]
    zones: list[str | None] = [trace.zone for trace in traces]
    moves = {(a, b.zone): job.move_usd(egress or {}, a, b.zone) for a in [*zones, None] for b in places}
    done = np.full(work + 1, np.inf)
    done[0] = 0.0  # by hours of work that are left
    idle: dict[str | None, Costs] = dict.fromkeys([*zones, None], done)
    busy = [np.tile(done, (cold + 1, 1)) for _ in places]
    for step in reversed(range(num_steps)):
        pays = [_one_step(place.usd[step], after) for place, after in zip(places, busy, strict=True)]
        starts = {
            zone: np.minimum.reduce(
                [pay[cold] + moves[zone, place.zone] for pay, place in zip(pays, places, strict=True)]
            )
            for zone in idle
        }
        later = {zone: np.minimum(after, starts[zone]) for zone, after in idle.items()}
        busy = [np.minimum(pay, later[place.zone]) for pay, place in zip(pays, places, strict=True)]
        idle = later
    return float(idle[None][work])


def _spot_prices(trace: Trace) -> Costs:
    return np.where(np.array(trace.available), np.array(trace.usd_per_hour), np.inf)


def _one_step(usd: float, after: Costs) -> Costs:
    """Costs to go of a machine that runs for a step: its cold start goes on, or else the work does."""
    costs = np.empty_like(after)
    costs[1:] = after[:-1]
    costs[0, 1:] = after[0, :-1]
    costs += usd
    costs[:, 0] = 0.0
    return costs
