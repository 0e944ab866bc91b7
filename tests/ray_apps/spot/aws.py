"""EC2 as moto has it, with faults, prices and preemptions put in where boto3 hands a call to the network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any
from unittest.mock import patch

import boto3
from botocore.client import BaseClient
from botocore.exceptions import ClientError, ReadTimeoutError
from moto import mock_aws

REGION = "us-west-2"
ZONES = [f"{REGION}{letter}" for letter in "abc"]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "anyone",
    "AWS_SECRET_ACCESS_KEY": "anything",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}
ALIVE = ("pending", "running")


def client_error(code: str, operation: str = "RunInstances") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": f"the message of {code}"}}, operation)


def out_of_reach() -> ReadTimeoutError:
    return ReadTimeoutError(endpoint_url="https://ec2")


@dataclass
class Call:
    operation: str
    arguments: dict[str, Any]


Fault = Callable[[Call], Exception | None]


@dataclass
class Cloud:
    """`before`: fail before anything happens; `after`: fail though it has happened. By operation, asked at each call.

    `prices`: spot prices by (zone, instance type), told in pages of one; moto's own if None. `states`: what
    DescribeInstances tells of a machine's state instead of moto, by id: (state, code of the reason).
    """

    before: dict[str, Fault] = field(default_factory=dict)
    after: dict[str, Fault] = field(default_factory=dict)
    prices: dict[tuple[str, str], float] | None = None
    states: dict[str, tuple[str, str]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def requests(self) -> list[tuple[str, str, str]]:
        """Zone, instance type and purchase kind of each request for machines so far."""
        zones = {subnet["SubnetId"]: subnet["AvailabilityZone"] for subnet in subnets()}
        return [
            (
                zones[call.arguments["SubnetId"]],
                call.arguments["InstanceType"],
                "spot" if "InstanceMarketOptions" in call.arguments else "on_demand",
            )
            for call in self.calls
            if call.operation == "RunInstances"
        ]

    def make_call(self, original: Callable[..., Any], client: BaseClient, operation: str, arguments: Any) -> Any:
        call = Call(operation, arguments)
        self.calls.append(call)
        if error := self.before.get(operation, lambda _: None)(call):
            raise error
        answer = self._answer(original, client, call)
        if error := self.after.get(operation, lambda _: None)(call):
            raise error
        return answer

    def _answer(self, original: Callable[..., Any], client: BaseClient, call: Call) -> Any:
        if call.operation == "DescribeSpotPriceHistory" and self.prices is not None:
            return self._price_page(call)
        answer = original(client, call.operation, call.arguments)
        if call.operation == "RunInstances" and call.arguments["MinCount"] > 1:
            assert len(answer["Instances"]) == call.arguments["MinCount"]
        if call.operation == "DescribeInstances":
            wanted = [f["Values"] for f in call.arguments.get("Filters", []) if f["Name"] == "instance-state-name"]
            for reservation in answer["Reservations"]:
                for instance in reservation["Instances"]:
                    if instance["InstanceId"] in self.states:
                        state, reason = self.states[instance["InstanceId"]]
                        instance["State"]["Name"] = state
                        instance["StateReason"] = {"Code": reason, "Message": reason}
                reservation["Instances"] = [
                    instance
                    for instance in reservation["Instances"]
                    if all(instance["State"]["Name"] in values for values in wanted)
                ]
        return answer

    def _price_page(self, call: Call) -> dict[str, Any]:
        assert self.prices is not None
        zones = next((f["Values"] for f in call.arguments.get("Filters", [])), ZONES)
        told = [
            {"AvailabilityZone": zone, "InstanceType": kind, "SpotPrice": str(price * factor), "Timestamp": time}
            for (zone, kind), price in self.prices.items()
            if zone in zones and kind in call.arguments["InstanceTypes"]
            for factor, time in ((9, datetime(2026, 1, 1, tzinfo=UTC)), (1, datetime(2026, 1, 2, tzinfo=UTC)))
        ]
        at = int(call.arguments.get("NextToken", "0"))
        more = {"NextToken": str(at + 1)} if at + 1 < len(told) else {}
        return {"SpotPriceHistory": told[at : at + 1], **more}


@contextmanager
def service() -> Iterator[None]:
    """moto in this process, empty at first."""
    from ray.autoscaler._private.aws.utils import client_cache, resource_cache

    with patch.dict("os.environ", CREDENTIALS), mock_aws():
        for cached in (client_cache, resource_cache, subnets, image):
            cached.cache_clear()
        yield


@contextmanager
def cloud(**settings: Any) -> Iterator[Cloud]:
    """What boto3 does in the block, seen and broken at will. The machines stay."""
    made, original = Cloud(**settings), BaseClient._make_api_call

    def make_call(client: BaseClient, operation: str, arguments: Any) -> Any:
        return made.make_call(original, client, operation, arguments)

    with patch.object(BaseClient, "_make_api_call", make_call):
        yield made


@cache
def subnets() -> list[dict[str, Any]]:
    """The default ones of the region, one in each zone."""
    found = _ec2().describe_subnets()["Subnets"]
    return sorted((s for s in found if s["AvailabilityZone"] in ZONES), key=lambda s: s["AvailabilityZone"])


@cache
def image() -> str:
    return str(_ec2().describe_images()["Images"][0]["ImageId"])


def alive(cluster_name: str) -> dict[str, dict[str, str]]:
    """The tags of the cluster's machines that are paid for, by id."""
    filters = [{"Name": "tag:ray-cluster-name", "Values": [cluster_name]}]
    return {
        instance["InstanceId"]: {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
        for reservation in _ec2().describe_instances(Filters=filters)["Reservations"]
        for instance in reservation["Instances"]
        if instance["State"]["Name"] in ALIVE
    }


def _ec2() -> Any:
    return boto3.client("ec2", region_name=REGION)
