"""A policy beside what else one could do, on the same windows of the same traces."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_prep.errors import ConfigError
from ray_apps.spot.policy import EAGER, PolicySettings
from ray_apps.spot.simulator.job import SimulatedJob
from ray_apps.spot.simulator.optimum import optimum_usd
from ray_apps.spot.simulator.simulate import Outcome, simulate
from ray_apps.spot.simulator.traces import Trace


@dataclass(frozen=True)
class Line:
    """Of one way to run, over all windows. `outcomes` are empty where there is a cost alone."""

    name: str
    usd: tuple[float, ...]
    outcomes: tuple[Outcome, ...] = ()
    num_late: int = 0

    @property
    def mean_usd(self) -> float:
        """Dollars of a run."""
        return statistics.fmean(self.usd)

    def mean(self, name: str) -> float:
        """Of one of the figures of `Outcome`."""
        return statistics.fmean(getattr(outcome, name) for outcome in self.outcomes)


def windows(traces: Sequence[Trace], starts_h: Sequence[float], hours: float) -> list[list[Trace]]:
    """The traces from each of the starts on."""
    return [[trace.window(start, hours) for trace in traces] for start in starts_h]


def run_all(
    name: str,
    job: SimulatedJob,
    settings: PolicySettings,
    parts: Sequence[Sequence[Trace]],
    egress: Mapping[tuple[str, str], float],
) -> Line:
    """The policy on every window."""
    outcomes = tuple(simulate(job, settings, part, egress) for part in parts)
    late = sum(outcome.is_late(settings.deadline_h) for outcome in outcomes)
    return Line(name, tuple(outcome.usd for outcome in outcomes), outcomes, late)


def compare(
    job: SimulatedJob,
    settings: PolicySettings,
    parts: Sequence[Sequence[Trace]],
    egress: Mapping[tuple[str, str], float],
) -> list[Line]:
    """The policy, eager failover, each zone alone, on demand alone and the offline optimum.

    Raises:
        ConfigError: the deadline leaves no time for the work even on demand.
    """
    deadline_h = settings.deadline_h
    least_h = job.work_h + job.cold_start_h
    if deadline_h is not None and deadline_h < least_h:
        raise ConfigError(
            f"policy.deadline_h: {deadline_h:g} is not valid; work and cold start take {least_h:g} h or more"
        )
    eager = EAGER.model_copy(update={"deadline_h": deadline_h})
    lines = [
        run_all("this policy", job, settings, parts, egress),
        run_all("eager failover", job, eager, parts, egress),
    ]
    for number, trace in enumerate(parts[0]):
        alone = [[part[number]] for part in parts]
        lines.append(run_all(f"{trace.zone} alone", job, eager, alone, egress))
    on_demand = tuple(_on_demand(job) for _ in parts)
    lines.append(Line("on demand", tuple(outcome.usd for outcome in on_demand), on_demand))
    by_h = deadline_h if deadline_h is not None else len(parts[0][0].available) * parts[0][0].step_h
    best = tuple(optimum_usd(job, part, by_h, egress, on_demand=settings.on_demand) for part in parts)
    return [*lines, Line("offline optimum", best)]


def _on_demand(job: SimulatedJob) -> Outcome:
    """One start, and nothing is ever taken away. Saves take no time here."""
    hours = job.cold_start_h + job.work_h
    return Outcome(
        job.work_h,
        is_done=True,
        wall_h=hours,
        usd=hours * job.on_demand_usd_per_hour,
        productive_h=job.work_h,
        recovery_h=job.cold_start_h,
        on_demand_h=hours,
        num_starts=1,
    )
