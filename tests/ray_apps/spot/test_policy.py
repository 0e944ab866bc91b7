"""What the policy decides, case by case."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.spot.policy import EAGER, Action, Observation, Offer, PolicySettings, State, decide, remember

HERE, THERE = Offer("us-east-1a", "spot", 1.0), Offer("us-west-2a", "spot", 0.5, move_usd=1.0)
DEMAND = Offer("us-east-1a", "on_demand", 3.0)
SETTINGS = PolicySettings(deadline_h=30, patience_h=1, price_margin=0.15)
SEEN = Observation(
    at_h=10, work_h=20, work_left_h=12, spent_usd=5, period_h=0.05, restart_h=0.2, offers=(HERE, THERE, DEMAND)
)
"""Eight hours are done after ten, where the line wants 6.7."""


def away(*offers: Offer) -> tuple[Offer, ...]:
    return tuple(replace(offer, is_there=False) for offer in offers)


def test_what_is_done_is_stopped() -> None:
    assert decide(SETTINGS, State(), replace(SEEN, work_left_h=0.0)) == Action("stop", reason="done")


def test_the_zone_is_taken_in_which_the_rest_costs_least() -> None:
    assert decide(EAGER, State(), SEEN) == Action("run", THERE)
    little = replace(SEEN, work_left_h=1.5)
    assert decide(EAGER, State(), little) == Action("run", HERE)  # the move would cost more than it saves


def test_a_spot_machine_is_kept() -> None:
    running = replace(SEEN, running=(HERE.zone, "spot"))
    assert decide(SETTINGS, State(), running) == Action("run", HERE)


def test_while_there_is_time_the_old_zone_is_waited_for() -> None:
    lost = State((HERE.zone, "spot"), is_lost=True, seen_at_h=9.5)
    without = replace(SEEN, offers=(*away(HERE), replace(THERE, usd_per_hour=1.0), DEMAND))
    assert decide(SETTINGS, lost, without) == Action("wait")
    later = replace(without, at_h=10.6)
    assert decide(SETTINGS, lost, later).offer == without.offers[1]
    behind = replace(without, work_left_h=14.0)
    assert decide(SETTINGS, lost, behind).offer == without.offers[1]


def test_while_there_is_time_no_dear_zone_is_taken() -> None:
    offers = (HERE, *away(THERE), DEMAND)
    assert decide(SETTINGS, State(), replace(SEEN, offers=offers)) == Action("wait")
    assert decide(SETTINGS, State(), replace(SEEN, offers=offers, work_left_h=14.0)) == Action("run", HERE)


def test_without_a_deadline_patience_ends_too() -> None:
    free = SETTINGS.model_copy(update={"deadline_h": None})
    offers = (HERE, *away(THERE), DEMAND)
    assert decide(free, State(seen_at_h=9.5), replace(SEEN, offers=offers)) == Action("wait")
    assert decide(free, State(seen_at_h=8.5), replace(SEEN, offers=offers)) == Action("run", HERE)
    assert decide(free, State(), replace(SEEN, offers=(*away(HERE, THERE), DEMAND))) == Action("wait")


def test_behind_the_line_on_demand_machines_are_taken_where_there_are_no_others() -> None:
    none = replace(SEEN, offers=(*away(HERE, THERE), DEMAND))
    assert decide(SETTINGS, State(), none) == Action("wait")
    assert decide(SETTINGS, State(), replace(none, work_left_h=14.0)) == Action("run", DEMAND)
    spot_only = SETTINGS.model_copy(update={"on_demand": False})
    assert decide(spot_only, State(), replace(none, work_left_h=14.0)) == Action("wait")


def test_an_on_demand_machine_is_left_once_the_run_is_ahead() -> None:
    running = replace(SEEN, running=(DEMAND.zone, "on_demand"))
    assert decide(SETTINGS, State(), running) == Action("run", THERE)
    assert decide(SETTINGS, State(), replace(running, work_left_h=14.0)) == Action("run", DEMAND)


@pytest.mark.parametrize("at_risk_h", [0.0, 1.0])
def test_near_the_deadline_there_is_no_risk(at_risk_h: float) -> None:
    """With 12 h left, of which a loss would add `at_risk_h`, and a restart of 0.2 h."""
    running = replace(SEEN, running=(HERE.zone, "spot"), at_risk_h=at_risk_h)
    safe, late = (replace(running, at_h=30 - 12 - at_risk_h - slack) for slack in (0.3, 0.2))
    assert decide(SETTINGS, State(), safe) == Action("run", HERE)
    assert decide(SETTINGS, State(), late) == Action("run", DEMAND)
    assert decide(SETTINGS, State(), replace(late, running=None)) == Action("run", DEMAND if not at_risk_h else THERE)


def test_nothing_is_begun_that_costs_too_much() -> None:
    limited = EAGER.model_copy(update={"max_cost_usd": 6.0})
    assert decide(limited, State(), SEEN) == Action("stop", reason="max_cost_usd")  # 5 + 1 for the move + the step
    running = replace(SEEN, running=(THERE.zone, "spot"))
    assert decide(limited, State(), running) == Action("run", THERE)


def test_a_zone_that_took_machines_away_is_not_asked_first() -> None:
    ran = remember(State(), replace(SEEN, running=(THERE.zone, "spot")), EAGER)
    lost = remember(ran, SEEN, EAGER)
    assert lost.is_lost
    assert decide(EAGER, lost, SEEN) == Action("run", HERE)
    only = replace(SEEN, offers=(*away(HERE), THERE))
    assert decide(EAGER, lost, only) == Action("run", THERE)
    later = replace(SEEN, at_h=SEEN.at_h + EAGER.cooldown_h)
    assert decide(EAGER, remember(lost, later, EAGER), later) == Action("run", THERE)


@given(
    st.lists(st.tuples(st.floats(0.1, 3), st.booleans()), min_size=1, max_size=4),
    st.floats(0, 30),
    st.floats(0, 20),
    st.sampled_from([EAGER, SETTINGS]),
)
def test_only_what_is_there_is_chosen(
    zones: list[tuple[float, bool]], at_h: float, left_h: float, settings: PolicySettings
) -> None:
    spot = [Offer(f"us-east-1{'abcd'[n]}", "spot", usd, 0.0, is_there) for n, (usd, is_there) in enumerate(zones)]
    seen = replace(SEEN, at_h=at_h, work_left_h=left_h, offers=(*spot, DEMAND))
    action = decide(settings, State(), seen)
    assert action == decide(settings, State(), seen)
    assert (action.kind == "run") == (action.offer is not None)
    assert action.offer is None or (action.offer.is_there and action.offer in seen.offers)
