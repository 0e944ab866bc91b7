"""`max_cost_usd` and `deadline_h`: they are kept by as much as it takes to save and to end the machines. Pure."""

from data_prep.errors import SpotError
from ray_apps.spot.launch_state import LaunchState
from ray_apps.spot.policy import PolicySettings

STOP_S = 300.0
"""How long a run may take to save and end."""
MARGIN_H = (STOP_S + 120.0) / 3600
"""What it takes to end a run and its machines."""


def check_limits(settings: PolicySettings, state: LaunchState, now: float, left_h: float) -> None:
    """Go on only as long as everything can be ended within the limits.

    Args:
        now: seconds since 1970.
        left_h: hours of work that are left: a run that ends in time is not stopped before the deadline.

    Raises:
        SpotError: a limit is reached, or would be.
    """
    deadline_h, at_h = settings.deadline_h, state.at_h(now)
    if deadline_h is not None and at_h + (0.0 if at_h + left_h <= deadline_h else MARGIN_H) >= deadline_h:
        raise SpotError(
            f"spot.policy.deadline_h: {at_h:.1f} of {deadline_h:g} h have passed; with a later one the run goes on"
        )
    if settings.max_cost_usd is not None and state.usd(now + MARGIN_H * 3600) > settings.max_cost_usd:
        raise too_dear(settings, state, now)


def can_pay(
    settings: PolicySettings, state: LaunchState, now: float, *, usd_per_hour: float, usd: float, hours: float
) -> bool:
    """Whether there is enough for `hours` at `usd_per_hour` and `usd` once, beside what is paid for already."""
    hours += MARGIN_H
    limit = settings.max_cost_usd
    return limit is None or state.usd(now + hours * 3600) + hours * usd_per_hour + usd <= limit


def too_dear(settings: PolicySettings, state: LaunchState, now: float) -> SpotError:
    """That the next would cost more than `max_cost_usd`."""
    spent, limit = state.usd(now), settings.max_cost_usd or 0.0
    return SpotError(f"spot.policy.max_cost_usd: ${spent:.2f} of ${limit:.2f} are spent; with more the run goes on")
