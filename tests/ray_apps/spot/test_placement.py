import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.spot.aws_errors import Blame
from ray_apps.spot.placement import COOLDOWN_S, Cooldowns, Offer, Purchase, rank

ZONES = ["east-a", "east-b", "west-a"]


def offer(zone: str, price: float | None = None, kind: str = "p4d", purchase: Purchase = "spot") -> Offer:
    return Offer(zone[:4], zone, kind, purchase, price)


def zones(ranked: list[Offer]) -> list[str]:
    return [offer.zone for offer in ranked]


def test_the_cheapest_comes_first_and_unknown_prices_last_in_the_order_given() -> None:
    offers = [offer("b"), offer("a"), offer("d", 3.0), offer("c", 2.0)]
    assert zones(rank(offers, Cooldowns(), 0.0)) == ["c", "d", "b", "a"]


def test_what_costs_more_than_allowed_is_left_out() -> None:
    offers = [offer("a", 3.01), offer("b", 3.0), offer("c")]
    assert zones(rank(offers, Cooldowns(), 0.0, max_usd_per_hour=3.0)) == ["b", "c"]


@pytest.mark.parametrize(
    ("blame", "left"),
    [
        (Blame.POOL, {("east-a", "p4de", "spot"), ("east-b", "p4d", "spot"), ("east-a", "p4d", "on_demand")}),
        (Blame.OFFER, {("east-a", "p4de", "spot"), ("east-b", "p4d", "spot")}),
        (Blame.ZONE, {("east-b", "p4d", "spot")}),
        (Blame.REGION, {("east-a", "p4d", "on_demand")}),
        (Blame.STOP, {("east-a", "p4d", "spot")}),
    ],
)
def test_a_failure_cools_down_as_widely_as_it_said(blame: Blame, left: set[tuple[str, str, str]]) -> None:
    failed = offer("east-a")
    offers = [failed, offer("east-a", kind="p4de"), offer("east-b"), offer("east-a", purchase="on_demand")]
    offers.append(offer("west-a"))  # no failure in the east speaks of it
    cooldowns = Cooldowns()
    cooldowns.fail(failed, blame, 0.0)
    found = {(o.zone, o.instance_type, o.purchase) for o in rank(offers, cooldowns, 1.0)}
    assert ("west-a", "p4d", "spot") in found
    assert left <= found
    if blame is not Blame.STOP:
        assert found == left | {("west-a", "p4d", "spot")}


@pytest.mark.parametrize("blame", [blame for blame in Blame if blame is not Blame.STOP])
def test_it_comes_back_by_itself(blame: Blame) -> None:
    cooldowns = Cooldowns()
    cooldowns.fail(offer("a"), blame, 100.0)
    assert rank([offer("a")], cooldowns, 100.0 + COOLDOWN_S[blame] - 1) == []
    assert rank([offer("a")], cooldowns, 100.0 + COOLDOWN_S[blame]) == [offer("a")]


def test_a_zone_that_took_a_machine_comes_last_and_is_never_alone() -> None:
    cooldowns = Cooldowns(preempted_s=60.0)
    cooldowns.preempt("a", 0.0)
    offers = [offer("a", 1.0), offer("b", 9.0)]
    assert zones(rank(offers, cooldowns, 59.0)) == ["b", "a"]
    assert rank([offer("a", 1.0)], cooldowns, 59.0) == []
    assert zones(rank(offers, cooldowns, 60.0)) == ["a", "b"]


def test_on_demand_machines_are_not_taken_away() -> None:
    cooldowns = Cooldowns()
    cooldowns.preempt("a", 0.0)
    assert zones(rank([offer("a", purchase="on_demand")], cooldowns, 1.0)) == ["a"]


EVENTS = st.lists(
    st.tuples(
        st.floats(0, 500),
        st.sampled_from(ZONES),
        st.sampled_from(["p4d", "p4de"]),
        st.sampled_from([*Blame, "preempted"]),
    ),
    max_size=20,
)


@given(events=EVENTS, prices=st.lists(st.none() | st.floats(0.1, 50), min_size=6, max_size=6), cap=st.floats(0.1, 50))
def test_whatever_happened(
    events: list[tuple[float, str, str, Blame | str]], prices: list[float | None], cap: float
) -> None:
    offers = [offer(zone, kind=kind) for zone in ZONES for kind in ("p4d", "p4de")]
    offers = [offer(o.zone, price, o.instance_type) for o, price in zip(offers, prices, strict=True)]
    cooldowns, now, preempted = Cooldowns(), 0.0, {}
    for wait, zone, kind, event in events:
        now += wait
        if isinstance(event, Blame):
            cooldowns.fail(offer(zone, kind=kind), event, now)
        else:
            cooldowns.preempt(zone, now)
            preempted[zone] = now
        ranked = rank(offers, cooldowns, now, cap)
        assert len(set(ranked)) == len(ranked)
        assert set(ranked) <= set(offers)
        assert all(o.usd_per_hour is None or o.usd_per_hour <= cap for o in ranked)
        if ranked:
            assert now - preempted.get(ranked[0].zone, -1e9) >= cooldowns.preempted_s
        if isinstance(event, Blame) and event is not Blame.STOP:
            assert all((o.zone, o.instance_type) != (zone, kind) for o in ranked)
    for o in rank(offers, cooldowns, now + max(COOLDOWN_S.values()), cap):
        offers.remove(o)
    assert all(o.usd_per_hour is not None and o.usd_per_hour > cap for o in offers)  # all others are back
