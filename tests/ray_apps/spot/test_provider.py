"""The node provider against moto's EC2: what it asks for, in which order, and what it leaves."""

import itertools
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.autoscaler.node_launch_exception import NodeLaunchException

from ray_apps.spot import gangs
from ray_apps.spot.placement import Cooldowns
from ray_apps.spot.provider import SpotNodeProvider
from tests.ray_apps.spot import aws
from tests.ray_apps.spot.aws import REGION, ZONES, Call, Cloud, Fault, alive, client_error, out_of_reach

P4D, P4DE = "p4d.24xlarge", "p4de.24xlarge"
PRICES = {(ZONES[0], P4D): 14.0, (ZONES[1], P4D): 11.0, (ZONES[2], P4D): 12.0}
_names = (f"cluster-{number}" for number in itertools.count())


class Provider(SpotNodeProvider):
    """With a clock of its own, which sleeping moves."""

    def __init__(self, **placement: Any) -> None:
        self.clock = 1000.0
        super().__init__({"region": REGION, "cache_stopped_nodes": False, "placement": placement}, next(_names))

    def _now(self) -> float:
        return self.clock

    def _sleep(self, seconds: float) -> None:
        self.clock += seconds

    def create(self, count: int = 1, **changes: Any) -> set[str]:
        tags = {"ray-node-kind": "worker", "ray-node-name": "ray-worker", "ray-user-node-type": "gpu"}
        tags["ray-launch-config"] = "hash"
        return set(self.create_node(node_config(**changes), tags, count))


def node_config(max_price: str | None = "16.00", **changes: Any) -> dict[str, Any]:
    spot = {"MarketType": "spot", **({"SpotOptions": {"MaxPrice": max_price}} if max_price else {})}
    config = {
        "InstanceType": P4D,
        "ImageId": aws.image(),
        "SubnetIds": [subnet["SubnetId"] for subnet in aws.subnets()],
        "InstanceMarketOptions": spot,
        **changes,
    }
    return {key: value for key, value in config.items() if value is not None}


def failing(*codes: str | None) -> Fault:
    """The first calls fail with these codes, None for one that does not; later ones do not."""
    left = iter(codes)
    return lambda call: client_error(code) if (code := next(left, None)) else None


def test_a_spot_machine_of_the_cheapest_zone_with_its_tags(cloud: Cloud) -> None:
    cloud.prices = PRICES
    provider = Provider()
    created = provider.create()
    assert cloud.requests() == [(ZONES[1], P4D, "spot")]
    (call,) = (call for call in cloud.calls if call.operation == "RunInstances")
    assert call.arguments["InstanceMarketOptions"]["SpotOptions"]["MaxPrice"] == "16.00"
    machines = alive(provider.cluster_name)
    assert set(machines) == created == set(provider.non_terminated_nodes({}))
    (tags,) = machines.values()
    assert tags == {
        "ray-cluster-name": provider.cluster_name,
        "ray-node-kind": "worker",
        "Name": "ray-worker",
        "ray-user-node-type": "gpu",
        "ray-launch-config": "hash",
        "vicuna-purchase": "spot",
        "vicuna-launch": call.arguments["ClientToken"],
    }
    provider.terminate_nodes(sorted(created))
    assert alive(provider.cluster_name) == {}


def test_tags_of_the_file_stay(cloud: Cloud) -> None:
    provider = Provider()
    provider.create(TagSpecifications=[{"ResourceType": "instance", "Tags": [{"Key": "team", "Value": "llm"}]}])
    (tags,) = alive(provider.cluster_name).values()
    assert tags["team"] == "llm"
    assert tags["ray-cluster-name"] == provider.cluster_name


def test_zones_in_the_order_of_price_and_what_failed_is_let_alone(cloud: Cloud) -> None:
    cloud.prices = PRICES
    cloud.before["RunInstances"] = failing("InsufficientInstanceCapacity", "SpotMaxPriceTooLow")
    provider = Provider(cooldown_s=300)
    provider.create()
    assert [zone for zone, _, _ in cloud.requests()] == [ZONES[1], ZONES[2], ZONES[0]]
    provider.create()
    assert cloud.requests()[3:] == [(ZONES[0], P4D, "spot")]
    provider.clock += 301
    provider.create()
    assert cloud.requests()[4:] == [(ZONES[1], P4D, "spot")]


def test_other_instance_types(cloud: Cloud) -> None:
    cloud.prices = {**PRICES, (ZONES[1], P4DE): 11.5, (ZONES[0], P4DE): 17.0}
    cloud.before["RunInstances"] = failing("Unsupported")
    provider = Provider(instance_types={"gpu": [P4DE]})
    provider.create()
    assert cloud.requests() == [(ZONES[1], P4D, "spot"), (ZONES[1], P4DE, "spot")]
    provider.clock += 3600  # the type does not come to the zone within an hour
    provider.create()
    assert cloud.requests()[2:] == [(ZONES[1], P4DE, "spot")]


def test_nothing_above_the_price(cloud: Cloud) -> None:
    cloud.prices = PRICES
    provider = Provider()
    with pytest.raises(NodeLaunchException, match="costs more than MaxPrice") as caught:
        provider.create(InstanceMarketOptions={"MarketType": "spot", "SpotOptions": {"MaxPrice": "10.99"}})
    assert caught.value.category == "NoOffer"
    assert cloud.requests() == []


def test_a_quota_ends_it_for_the_region(cloud: Cloud) -> None:
    cloud.before["RunInstances"] = failing("MaxSpotInstanceCountExceeded")
    provider = Provider()
    with pytest.raises(NodeLaunchException) as caught:
        provider.create()
    assert caught.value.category == "MaxSpotInstanceCountExceeded"
    assert len(cloud.requests()) == 1


def test_authentication_ends_it_with_what_would_help(cloud: Cloud) -> None:
    cloud.before["RunInstances"] = failing("InsufficientInstanceCapacity", "AuthFailure")
    provider = Provider(fall_back_to_on_demand=True)
    with pytest.raises(NodeLaunchException, match="check the AWS credentials") as caught:
        provider.create()
    assert caught.value.category == "AuthFailure"
    assert len(cloud.requests()) == 2


def test_the_same_request_again_while_aws_is_busy(cloud: Cloud) -> None:
    cloud.before["RunInstances"] = failing("RequestLimitExceeded", "InternalError")
    provider = Provider()
    provider.create()
    runs = [call.arguments for call in cloud.calls if call.operation == "RunInstances"]
    assert len(runs) == 3
    assert runs[0] == runs[1] == runs[2]
    assert provider.clock >= 1000.0 + 2 + 4


def test_prices_that_cannot_be_had_leave_the_order_of_the_file(cloud: Cloud) -> None:
    cloud.before["DescribeSpotPriceHistory"] = lambda call: client_error("UnauthorizedOperation")
    provider = Provider()
    provider.create()
    assert cloud.requests() == [(ZONES[0], P4D, "spot")]


def test_falling_back_to_on_demand_is_a_choice(cloud: Cloud) -> None:
    cloud.before["RunInstances"] = lambda call: (
        client_error("InsufficientInstanceCapacity") if "InstanceMarketOptions" in call.arguments else None
    )
    provider = Provider()
    with pytest.raises(NodeLaunchException) as caught:
        provider.create()
    assert caught.value.category == "InsufficientInstanceCapacity"
    assert [purchase for _, _, purchase in cloud.requests()] == ["spot"] * 3
    provider = Provider(fall_back_to_on_demand=True)
    provider.create()
    assert [purchase for _, _, purchase in cloud.requests()[3:]] == ["spot"] * 3 + ["on_demand"]
    (tags,) = alive(provider.cluster_name).values()
    assert tags["vicuna-purchase"] == "on_demand"


def test_what_is_taken_in_place_of_spot_has_a_limit_too(cloud: Cloud) -> None:
    rates = {P4D: 32.77}
    limits = {"on_demand_usd_per_hour": rates, "instance_types": {"gpu": [P4DE]}, "fall_back_to_on_demand": True}
    with pytest.raises(NodeLaunchException):
        Provider(max_on_demand_usd_per_hour=30.0, **limits).create(max_price="0.000001")
    assert cloud.requests() == []
    Provider(max_on_demand_usd_per_hour=33.0, **limits).create(max_price="0.000001")
    assert {kind for _, kind, _ in cloud.requests()} == {P4D}  # of the other no rate is known


def test_an_on_demand_node_type_never_asks_for_prices(cloud: Cloud) -> None:
    provider = Provider()
    provider.create(InstanceMarketOptions=None)
    assert cloud.requests() == [(ZONES[0], P4D, "on_demand")]
    assert "DescribeSpotPriceHistory" not in {call.operation for call in cloud.calls}


def test_a_gang_comes_whole(cloud: Cloud) -> None:
    provider = Provider()
    created = provider.create(3)
    assert len(created) == 3
    assert set(alive(provider.cluster_name)) == created
    (call,) = (call for call in cloud.calls if call.operation == "RunInstances")
    assert call.arguments["MinCount"] == call.arguments["MaxCount"] == 3


def test_a_gang_of_which_one_dies_is_terminated_and_asked_for_elsewhere(cloud: Cloud) -> None:
    cloud.prices = PRICES
    provider = Provider()

    def kill_one(call: Call) -> None:
        if len(cloud.requests()) == 1 and (first := min(alive(provider.cluster_name), default=None)):
            cloud.states[first] = ("terminated", "Server.InsufficientInstanceCapacity")

    cloud.after["RunInstances"] = lambda call: kill_one(call)
    created = provider.create(2)
    assert cloud.requests() == [(ZONES[1], P4D, "spot"), (ZONES[2], P4D, "spot")]
    assert set(alive(provider.cluster_name)) == created
    assert len(created) == 2


def test_a_gang_that_is_late_is_terminated(cloud: Cloud) -> None:
    provider = Provider(timeout_s=60)
    cloud.after["RunInstances"] = lambda call: cloud.states.update(
        dict.fromkeys(list(alive(provider.cluster_name))[:1], ("pending", ""))
    )
    with pytest.raises(NodeLaunchException, match="1 of 2 machines ran in time") as caught:
        provider.create(2)
    assert caught.value.category == "GangTimeout"
    assert len(cloud.requests()) == 1  # the time was for all of it
    cloud.states.clear()
    assert alive(provider.cluster_name) == {}


def test_an_answer_with_too_few_machines_is_not_kept(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = Provider()
    create = provider.ec2_fail_fast.create_instances
    monkeypatch.setattr(type(provider.ec2_fail_fast), "create_instances", lambda _, **request: create(**request)[:1])
    with pytest.raises(NodeLaunchException) as caught:
        provider.create(2)
    assert caught.value.category == "UnfulfillableCapacity"
    assert alive(provider.cluster_name) == {}


def test_machines_of_a_lost_answer_are_found_by_their_tag(cloud: Cloud) -> None:
    lost = iter([True])
    cloud.after["RunInstances"] = lambda call: out_of_reach() if next(lost, False) else None
    provider = Provider()
    created = provider.create(2)  # AWS would give the first machines again; moto gives others
    assert len(cloud.requests()) == 2
    assert set(alive(provider.cluster_name)) == created


def test_a_termination_that_fails_is_made_up_for_at_the_next_look(cloud: Cloud) -> None:
    cloud.after["RunInstances"] = lambda call: out_of_reach()
    cloud.before["TerminateInstances"] = lambda call: client_error("RequestLimitExceeded")
    provider = Provider()
    with pytest.raises(NodeLaunchException):
        provider.create()
    assert alive(provider.cluster_name)
    assert set(provider.non_terminated_nodes({})) == set(alive(provider.cluster_name))  # Ray sees them
    cloud.before.clear()
    assert provider.non_terminated_nodes({}) == []
    assert alive(provider.cluster_name) == {}


def test_nothing_is_left_when_a_launch_is_broken_off(cloud: Cloud) -> None:
    def interrupt(call: Call) -> None:
        if "RunInstances" in {call.operation for call in cloud.calls}:
            cloud.before.clear()
            raise KeyboardInterrupt

    cloud.before["DescribeInstances"] = interrupt
    provider = Provider()
    with pytest.raises(KeyboardInterrupt):
        provider.create(2)
    assert alive(provider.cluster_name) == {}


def test_the_zone_that_took_a_machine_is_not_asked_first(cloud: Cloud) -> None:
    cloud.prices = PRICES
    provider = Provider()
    (machine,) = provider.create()
    provider.non_terminated_nodes({})
    cloud.states[machine] = ("shutting-down", "Server.SpotInstanceTermination")
    cloud.before["RunInstances"] = failing("InsufficientInstanceCapacity", "InsufficientInstanceCapacity")
    provider.create()
    assert cloud.requests()[1:] == [(zone, P4D, "spot") for zone in (ZONES[2], ZONES[0], ZONES[1])]


@pytest.mark.parametrize("reason", ["Client.UserInitiatedShutdown", "Server.SpotInstanceTermination"])
def test_only_what_was_taken_away_counts(cloud: Cloud, reason: str) -> None:
    cloud.prices = PRICES
    provider = Provider()
    (machine,) = provider.create()
    provider.non_terminated_nodes({})
    if reason.startswith("Server."):  # but it was terminated from here before
        provider.terminate_node(machine)
    cloud.states[machine] = ("terminated", reason)
    provider.non_terminated_nodes({})
    provider.create()
    assert cloud.requests()[1:] == [(ZONES[1], P4D, "spot")]


CODES = ["InsufficientInstanceCapacity", "Unsupported", "InsufficientFreeAddressesInSubnet", "SpotMaxPriceTooLow"]
CODES += ["MaxSpotInstanceCountExceeded", "RequestLimitExceeded", "InternalError", "AuthFailure", "lost"]
FAULTS = st.lists(st.none() | st.sampled_from(CODES), max_size=12)
STEPS = st.lists(st.sampled_from(["create", "create gang", "look", "wait"]) | st.integers(0, 5), min_size=1, max_size=8)


def _script(faults: list[str | None]) -> Iterator[Exception | None]:
    for code in faults:
        yield None if code is None else out_of_reach() if code == "lost" else client_error(code)
    yield from itertools.repeat(None)


@settings(max_examples=40)
@given(
    steps=STEPS,
    before=FAULTS,
    after=st.lists(st.none() | st.just("lost"), max_size=6),
    endings=st.lists(st.none() | st.sampled_from(["RequestLimitExceeded", "lost"]), max_size=3),
    prices=st.lists(st.floats(10, 20), min_size=3, max_size=3),
    falls_back=st.booleans(),
)
def test_whatever_aws_answers(
    ec2_service: None,
    steps: list[str | int],
    before: list[str | None],
    after: list[str | None],
    endings: list[str | None],
    prices: list[float],
    falls_back: bool,
) -> None:
    """Every machine with the cluster's tag was handed on or is terminated; limits and preempted zones are kept to."""
    told = dict(zip(((zone, P4D) for zone in ZONES), prices, strict=True))
    provider = Provider(
        fall_back_to_on_demand=falls_back, on_demand_usd_per_hour={P4D: 32.77}, max_on_demand_usd_per_hour=33.0
    )
    handed_on: set[str] = set()
    taken: dict[str, float] = {}
    scripts = {"RunInstances": _script(before), "TerminateInstances": _script(endings)}
    lost = _script(after)
    with aws.cloud(prices=told) as cloud:
        for operation, script in scripts.items():
            cloud.before[operation] = lambda call, script=script: next(script)  # type: ignore[misc]
        cloud.after["RunInstances"] = lambda call: next(lost)
        for step in steps:
            if isinstance(step, int):  # one of those that run is taken away
                running = sorted(handed_on - set(cloud.states))
                if step < len(running):
                    machine = running[step]
                    tags = alive(provider.cluster_name)[machine]
                    if tags["vicuna-purchase"] == "spot":
                        provider.non_terminated_nodes({})
                        cloud.states[machine] = ("terminated", "Server.SpotInstanceTermination")
                        handed_on.discard(machine)
                        taken[provider.cached_nodes[machine].placement["AvailabilityZone"]] = provider.clock
            elif step.startswith("create"):
                num_before, started = len(cloud.requests()), provider.clock
                try:
                    created = provider.create(2 if "gang" in step else 1)
                    assert len(created) == (2 if "gang" in step else 1)
                    handed_on |= created
                except NodeLaunchException:
                    pass
                requests = cloud.requests()[num_before:]
                assert all(purchase == "on_demand" or told[zone, kind] <= 16 for zone, kind, purchase in requests)
                assert falls_back or all(purchase == "spot" for _, _, purchase in requests)
                if requests and requests[0][2] == "spot":
                    assert started - taken.get(requests[0][0], -1e9) >= provider.cooldowns.preempted_s
            elif step == "look":
                provider.non_terminated_nodes({})
            else:
                provider.clock += 400
        provider.clock += gangs.UNSEEN_S
        for _ in range(len(endings) + 1):
            provider.non_terminated_nodes({})
        assert set(alive(provider.cluster_name)) == handed_on
        assert set(provider.non_terminated_nodes({})) == handed_on
        cloud.before.clear()
        provider.terminate_nodes(sorted(handed_on))
        assert alive(provider.cluster_name) == {}


def test_cooldowns_are_those_of_the_file(cloud: Cloud) -> None:
    assert Provider(cooldown_s=7).cooldowns.preempted_s == 7
    assert Provider().cooldowns.preempted_s == Cooldowns().preempted_s


def test_clusters_are_found_by_their_tags_in_every_region(cloud: Cloud) -> None:
    provider = Provider()
    provider.create()
    ours = provider.cluster_name
    far = boto3.client("ec2", region_name="eu-west-1")
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "ray-cluster-name", "Value": f"{ours}_eu-west-1a"}]}]
    (machine,) = far.run_instances(ImageId=aws.image(), MinCount=1, MaxCount=1, TagSpecifications=tags)["Instances"]
    assert provider.find_clusters(ours, {REGION}) == {(ours, REGION), (f"{ours}_eu-west-1a", "eu-west-1")}
    assert provider.find_clusters(f"{ours}_", {REGION}) == {(f"{ours}_eu-west-1a", "eu-west-1")}
    far.terminate_instances(InstanceIds=[machine["InstanceId"]])
    assert provider.find_clusters(f"{ours}_", {REGION}) == set()


def test_a_region_that_does_not_tell_hides_no_other(cloud: Cloud) -> None:
    provider = Provider()
    provider.create()
    cloud.before["DescribeInstances"] = failing("UnauthorizedOperation")  # the first that is asked
    assert provider.find_clusters(provider.cluster_name, {REGION}) == {(provider.cluster_name, REGION)}
    everywhere = {told["RegionName"] for told in boto3.client("ec2").describe_regions()["Regions"]}
    cloud.before["DescribeInstances"] = failing("UnauthorizedOperation")
    with pytest.raises(ClientError, match="UnauthorizedOperation"):
        provider.find_clusters(provider.cluster_name, everywhere)
