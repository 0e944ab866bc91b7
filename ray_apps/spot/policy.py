"""Where a run goes on next: `decide(state, observation) -> action`. Pure; the launcher and the simulator ask it alike.

The rules against a deadline are Uniform Progress (Wu et al., "Can't Be Late", NSDI 2024): work is to be done at least
as fast as a line from nothing at the start to everything at the deadline. Times are hours, prices dollars per hour of
all machines together.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from data_prep.config import Settings
from ray_apps.spot.placement import Purchase

Kind = Literal["run", "wait", "stop"]


class PolicySettings(Settings):
    """What a run may cost, when it must be done, and how it chooses."""

    deadline_h: float | None = Field(None, gt=0)
    """Hours from the start until all must be done; on-demand machines see to it. None: it may take for ever."""
    max_cost_usd: float | None = Field(None, gt=0)
    """Never spend more; the run stops before, with its last checkpoint."""
    on_demand: bool = True
    """Take on-demand machines where the deadline needs them."""
    patience_h: float = Field(2.0, ge=0)
    """After a preemption: hours to wait for the same zone before another is taken. 0 is eager failover."""
    price_margin: float | None = Field(0.05, ge=0)
    """While there is time, only zones at most so much dearer than the cheapest one, whether that has machines or not.
    None: any price will do. Without a deadline there is time for `patience_h`."""
    cooldown_h: float = Field(0.1, ge=0)
    """A zone that took a machine away is not asked again so soon, while another can be had."""


EAGER = PolicySettings(patience_h=0, price_margin=None)
"""Uniform Progress with eager failover: whatever spot machine is cheapest, at once."""


@dataclass(frozen=True)
class Offer:
    """What can be run on. `move_usd`: to bring the run's checkpoint there. `is_there`: whether there is any now."""

    zone: str
    purchase: Purchase
    usd_per_hour: float
    move_usd: float = 0.0
    is_there: bool = True


@dataclass(frozen=True)
class Observation:
    """What is the case now.

    `work_left_h`: hours of training that are left if nothing is lost, a cold start under way included. `at_risk_h`:
    hours of training that a machine which is gone without notice would take along. `period_h`: until the next
    decision. `restart_h`: from asking for machines until training goes on. `running`: what it runs on.
    """

    at_h: float
    work_h: float
    work_left_h: float
    spent_usd: float
    period_h: float
    restart_h: float
    offers: tuple[Offer, ...]
    running: tuple[str, Purchase] | None = None
    at_risk_h: float = 0.0


@dataclass(frozen=True)
class State:
    """What a decision remembers of earlier ones. `running`: where machines were last seen, `seen_at_h`: when."""

    running: tuple[str, Purchase] | None = None
    is_lost: bool = False
    seen_at_h: float = 0.0
    cooling: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Action:
    """`run`: be on `offer`, where it may be already. `wait`: for spot machines. `stop`: for `reason`; start nothing."""

    kind: Kind
    offer: Offer | None = None
    reason: str = ""


def remember(state: State, seen: Observation, settings: PolicySettings) -> State:
    """The state with what is seen now: machines that ran and are gone were taken away."""
    cooling = tuple((zone, until) for zone, until in state.cooling if until > seen.at_h)
    if seen.running is not None:
        return State(seen.running, seen_at_h=seen.at_h, cooling=cooling)
    if state.running is not None and not state.is_lost and state.running[1] == "spot":
        cooling += ((state.running[0], seen.at_h + settings.cooldown_h),)
    return State(state.running, state.running is not None, state.seen_at_h, cooling)


def warn(state: State, zone: str, at_h: float, settings: PolicySettings) -> State:
    """The state once a zone has said that it will take a machine away."""
    return replace(state, cooling=(*state.cooling, (zone, at_h + settings.cooldown_h)))


def forget(state: State) -> State:
    """The state once nothing is to be had where machines were last, so that there is nothing to wait for there."""
    return replace(state, running=None, is_lost=False)


def decide(settings: PolicySettings, state: State, seen: Observation) -> Action:
    """What to do until the next decision.

    A spot machine is kept as long as its loss would leave time for an on-demand one. Work is stopped before it would
    cost more than allowed.
    """
    if seen.work_left_h <= 0:
        return Action("stop", reason="done")
    wanted = _wanted(settings, state, seen)
    if wanted is None:
        return Action("wait")
    if settings.max_cost_usd is not None and seen.spent_usd + _costs(wanted, seen) > settings.max_cost_usd:
        return Action("stop", reason="max_cost_usd")
    return Action("run", wanted)


def _wanted(settings: PolicySettings, state: State, seen: Observation) -> Offer | None:
    ours = _running_offer(seen)
    slack_h = _slack_h(settings, seen)
    spot = [offer for offer in seen.offers if offer.purchase == "spot" and offer.is_there]
    if ours is not None and ours.purchase == "spot":
        if slack_h is not None and slack_h - seen.at_risk_h < seen.restart_h + seen.period_h:
            return _on_demand(settings, seen) or ours
        return ours
    is_late = slack_h is not None and slack_h < 2 * seen.restart_h + seen.period_h
    if ours is not None:
        is_ahead = _lead_h(settings, seen, 2 * seen.restart_h) >= 0
        return (_cheapest(_fair(settings, seen, spot), seen) if is_ahead and not is_late else None) or ours
    if is_late:
        return _on_demand(settings, seen) or _cheapest(spot, seen)
    is_behind = _lead_h(settings, seen) < 0
    choice = _cheapest(_acceptable(settings, state, seen, spot, is_behind), seen)
    return choice or (_on_demand(settings, seen) if is_behind else None)


def _acceptable(
    settings: PolicySettings, state: State, seen: Observation, spot: Sequence[Offer], is_behind: bool
) -> list[Offer]:
    """The spot machines that are good enough now: all if there is no time to choose."""
    warm = [offer for offer in spot if not any(zone == offer.zone for zone, _ in state.cooling)] or list(spot)
    has_waited = seen.at_h - state.seen_at_h >= settings.patience_h
    if is_behind or (has_waited and settings.deadline_h is None):
        return warm
    if state.running is not None and not has_waited:
        return [offer for offer in warm if offer.zone == state.running[0]]
    return _fair(settings, seen, warm)


def _fair(settings: PolicySettings, seen: Observation, offers: Sequence[Offer]) -> list[Offer]:
    if settings.price_margin is None:
        return list(offers)
    least = min((offer.usd_per_hour for offer in seen.offers if offer.purchase == "spot"), default=0.0)
    return [offer for offer in offers if offer.usd_per_hour <= (1 + settings.price_margin) * least]


def _cheapest(offers: Iterable[Offer], seen: Observation) -> Offer | None:
    """The one on which all that is left costs least: the move, the cold start, the work."""
    hours = seen.restart_h + seen.work_left_h
    return min(offers, key=lambda offer: offer.move_usd + offer.usd_per_hour * hours, default=None)


def _on_demand(settings: PolicySettings, seen: Observation) -> Offer | None:
    if not settings.on_demand:
        return None
    return _cheapest([offer for offer in seen.offers if offer.purchase == "on_demand" and offer.is_there], seen)


def _running_offer(seen: Observation) -> Offer | None:
    found = (offer for offer in seen.offers if (offer.zone, offer.purchase) == seen.running and offer.is_there)
    return next(found, None)


def _slack_h(settings: PolicySettings, seen: Observation) -> float | None:
    """Hours that may still be lost."""
    return None if settings.deadline_h is None else settings.deadline_h - seen.at_h - seen.work_left_h


def _lead_h(settings: PolicySettings, seen: Observation, later_h: float = 0.0) -> float:
    """Hours of work by which the run is ahead of the line, as that stands `later_h` from now."""
    if settings.deadline_h is None:
        return float("inf")
    done_h = seen.work_h - seen.work_left_h
    return done_h - (seen.at_h + later_h) * seen.work_h / settings.deadline_h


def _costs(offer: Offer, seen: Observation) -> float:
    """Dollars until the next decision."""
    move = 0.0 if (offer.zone, offer.purchase) == seen.running else offer.move_usd
    return move + offer.usd_per_hour * seen.period_h
