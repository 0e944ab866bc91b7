"""One run of a policy on traces, step by step.

Within a step prices and availability are those of its row. A machine that a zone does not have in the next row is taken
away between the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ray_apps.spot.placement import Purchase
from ray_apps.spot.policy import Observation, Offer, PolicySettings, State, decide, remember
from ray_apps.spot.simulator.job import SimulatedJob
from ray_apps.spot.simulator.traces import Trace, region_of

Place = tuple[str, Purchase]
_NOTHING_H = 1e-9


@dataclass
class Outcome:
    """What became of a run. Hours and dollars.

    `wall_h`: from the start to the end of the work, or of the traces. The buckets of `paid_h` are those of goodput:
    `productive_h` was kept, `recovery_h` went into cold starts, `save_h` into saves, `wasted_h` was done twice.
    `waiting_h` is not paid. `path`: where it was in each step.
    """

    work_h: float
    is_done: bool = False
    wall_h: float = 0.0
    usd: float = 0.0
    egress_usd: float = 0.0
    productive_h: float = 0.0
    recovery_h: float = 0.0
    save_h: float = 0.0
    wasted_h: float = 0.0
    waiting_h: float = 0.0
    on_demand_h: float = 0.0
    num_preemptions: int = 0
    num_migrations: int = 0
    num_starts: int = 0
    stopped: str = ""
    path: list[Place | None] = field(default_factory=list)

    @property
    def paid_h(self) -> float:
        """Hours for which there were machines."""
        return self.productive_h + self.recovery_h + self.save_h + self.wasted_h

    @property
    def goodput_per_paid_hour(self) -> float:
        """Share of the hours that are paid in which work was done that was kept."""
        return self.productive_h / self.paid_h if self.paid_h else 0.0

    @property
    def goodput_per_wall_hour(self) -> float:
        """Share of all hours, waiting included."""
        return self.productive_h / self.wall_h if self.wall_h else 0.0

    def is_late(self, deadline_h: float | None) -> bool:
        """Whether the work was not done by the deadline."""
        return not self.is_done or (deadline_h is not None and self.wall_h > deadline_h + _NOTHING_H)


class _Run:
    """The work of one run: what is saved, what is not yet, and what a machine must still do before it trains."""

    def __init__(self, job: SimulatedJob, traces: Sequence[Trace], egress: Mapping[tuple[str, str], float]) -> None:
        self.job = job
        self.traces = {trace.zone: trace for trace in traces}
        self.egress = egress
        self.step_h = traces[0].step_h
        self.outcome = Outcome(job.work_h)
        self.saved_h = 0.0
        self.unsaved_h = 0.0
        self.starting_h = 0.0
        self.saving_h: float | None = None
        self.running: Place | None = None
        self.last_zone: str | None = None

    @property
    def left_h(self) -> float:
        return self.job.work_h - self.saved_h - self.unsaved_h

    def observe(self, step: int) -> Observation:
        at_risk_h = 0.0 if self.job.has_urgent_saves else self.unsaved_h
        return Observation(
            at_h=step * self.step_h,
            work_h=self.job.work_h,
            work_left_h=max(0.0, self.left_h) + (self.starting_h if self.running else 0.0),
            spent_usd=self.outcome.usd,
            period_h=self.step_h,
            restart_h=self.job.cold_start_h,
            offers=tuple(self._offers(step)),
            running=self.running,
            at_risk_h=at_risk_h,
        )

    def _offers(self, step: int) -> Sequence[Offer]:
        offers = []
        for zone, trace in self.traces.items():
            move_usd = self._move_usd(zone)
            offers.append(Offer(zone, "spot", trace.usd_per_hour[step], move_usd, trace.available[step]))
            offers.append(Offer(zone, "on_demand", self.job.on_demand_usd_per_hour, move_usd))
        return offers

    def _move_usd(self, zone: str) -> float:
        return self.job.move_usd(self.egress, self.last_zone, zone)

    def take_away(self) -> None:
        """The machine is gone: with a notice that is long enough nothing but its time is lost."""
        self.outcome.num_preemptions += 1
        self._leave(saves=self.job.has_urgent_saves)

    def start(self, place: Place) -> None:
        """Leave what it runs on, with a checkpoint, and bring it to `place`."""
        if self.running is not None:
            self._leave(saves=True)
        cost = self._move_usd(place[0])
        self.outcome.egress_usd += cost
        self.outcome.usd += cost
        is_elsewhere = self.last_zone is not None and region_of(place[0]) != region_of(self.last_zone)
        self.outcome.num_migrations += is_elsewhere
        self.outcome.num_starts += 1
        self.running, self.last_zone, self.starting_h = place, place[0], self.job.cold_start_h

    def stop(self) -> None:
        if self.running is not None:
            self._leave(saves=True)

    def _leave(self, *, saves: bool) -> None:
        if saves:
            self.saved_h += self.unsaved_h
        else:
            self.outcome.wasted_h += self.unsaved_h
            self.outcome.productive_h -= self.unsaved_h
        self.unsaved_h, self.saving_h = 0.0, None
        self.running = None

    def spend(self, hours: float, usd_per_hour: float) -> float:
        """Run for so long, or until all is done; hours that it took."""
        left = hours
        while left > _NOTHING_H and self.left_h > _NOTHING_H:
            if self.starting_h > 0:
                spent = min(left, self.starting_h)
                self.starting_h -= spent
                self.outcome.recovery_h += spent
            elif self.saving_h is not None:
                spent = min(left, self.saving_h)
                self.saving_h -= spent
                self.outcome.save_h += spent
            else:
                spent = min(left, self.left_h, self.job.checkpoint_every_h - self.unsaved_h)
                self.unsaved_h += spent
                self.outcome.productive_h += spent
                if self.unsaved_h > self.job.checkpoint_every_h - _NOTHING_H:
                    self.saving_h = self.job.save_h
            if self.saving_h is not None and self.saving_h < _NOTHING_H:
                self.saved_h, self.unsaved_h, self.saving_h = self.saved_h + self.unsaved_h, 0.0, None
            left -= spent
        used = hours - max(0.0, left)
        self.outcome.usd += used * usd_per_hour
        return used


def simulate(
    job: SimulatedJob,
    settings: PolicySettings,
    traces: Sequence[Trace],
    egress: Mapping[tuple[str, str], float] | None = None,
) -> Outcome:
    """Run the policy until the work is done, it stops, or the traces end.

    Args:
        traces: of the same times, as `read_traces` gives them.
        egress: dollars per GB between regions.
    """
    run = _Run(job, traces, egress or {})
    state = State()
    for step in range(len(traces[0].available)):
        if run.running is not None and not _is_there(run, step):
            run.take_away()
        seen = run.observe(step)
        state = remember(state, seen, settings)
        action = decide(settings, state, seen)
        if action.kind == "stop":
            run.stop()
            run.outcome.stopped = action.reason
            break
        place = None if action.offer is None else (action.offer.zone, action.offer.purchase)
        if place is not None and place != run.running:
            run.start(place)
        elif place is None:
            run.stop()
        state = remember(state, run.observe(step), settings)
        if _go_on(run, step):
            run.outcome.is_done = True
            break
    return run.outcome


def _is_there(run: _Run, step: int) -> bool:
    assert run.running is not None
    zone, purchase = run.running
    return purchase == "on_demand" or run.traces[zone].available[step]


def _go_on(run: _Run, step: int) -> bool:
    """Let a step pass; whether all is done."""
    outcome, place = run.outcome, run.running
    outcome.path.append(place)
    if place is None:
        outcome.waiting_h += run.step_h
        outcome.wall_h += run.step_h
        return False
    zone, purchase = place
    price = run.job.on_demand_usd_per_hour if purchase == "on_demand" else run.traces[zone].usd_per_hour[step]
    used = run.spend(run.step_h, price)
    outcome.wall_h += used
    outcome.on_demand_h += used if purchase == "on_demand" else 0.0
    return run.left_h <= _NOTHING_H
