"""Ray's AWS node provider, with a choice of zones and instance types and gangs that come whole or not at all.

Ray's own starts at the first zone each time, tries each whatever the error, and takes less than was asked for. This
one asks for the cheapest first and lets alone for a while what failed. Named in a cluster file as `provider: {type:
external, module: ray_apps.spot.provider.SpotNodeProvider}`; Ray makes one in `ray up`, and one that lives on the head.
"""

import copy
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import boto3
import click
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider, to_aws_format
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME, TAG_RAY_USER_NODE_TYPE

from data_prep.errors import ConfigError
from ray_apps.spot.aws_errors import Blame, code_of, describe
from ray_apps.spot.gangs import AWS_ERRORS, Gangs, LaunchError
from ray_apps.spot.placement import COOLDOWN_S, Cooldowns, Offer, Purchase, rank
from ray_apps.spot.pricing import PriceError, spot_prices
from ray_apps.spot.provider_config import PlacementConfig, check_cluster, max_spot_price

logger = logging.getLogger(__name__)

TAG_PURCHASE = "vicuna-purchase"


class SpotNodeProvider(AWSNodeProvider):
    """See the module. Thread-safe, as Ray requires: launches run beside each other."""

    head_dies_s = 60.0
    """How long a head that is terminated may still ask for workers."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        AWSNodeProvider.__init__(self, provider_config, cluster_name)
        self.placement = PlacementConfig.of(provider_config)
        waits = {**COOLDOWN_S, Blame.POOL: self.placement.cooldown_s, Blame.ZONE: self.placement.cooldown_s}
        self.cooldowns = Cooldowns(waits, preempted_s=self.placement.cooldown_s)
        self.gangs = Gangs(self.ec2, self.ec2_fail_fast, now=lambda: self._now(), sleep=lambda s: self._sleep(s))
        self._lock = threading.RLock()
        self._zones: dict[str, str] = {}  # of subnets
        self._spot_zones: dict[str, str] = {}  # of spot machines that were alive, by id

    def _create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Have `count` machines run, all of one offer; Ray's `create_node` calls this.

        Returns:
            EC2's instances by id.

        Raises:
            NodeLaunchException: they are not to be had, and none stays; `category` is AWS's code of the reason.
        """
        self.non_terminated_nodes({})  # tells which zones have just taken machines away
        deadline = self._now() + self.placement.timeout_s
        reasons: list[LaunchError] = []
        for offer in self._ranked(node_config, tags.get(TAG_RAY_USER_NODE_TYPE)):
            if self._cools_down(offer):
                continue  # an earlier failure spoke of it too
            if reasons and self._now() >= deadline:
                break
            try:
                return self.gangs.launch(self._request(offer, node_config, tags), count, deadline)
            except LaunchError as failed:
                logger.warning("%d × %s: %s", count, offer, failed)
                reasons.append(failed)
                with self._lock:
                    self.cooldowns.fail(offer, failed.blame, self._now())
                if failed.blame is Blame.STOP:
                    break
        raise _no_machines(reasons, count)

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """As Ray's. Also cleans up after failed requests, and notes which zones have taken machines away."""
        self.gangs.clean_up()
        is_for_all = not tag_filters
        nodes: list[str] = AWSNodeProvider.non_terminated_nodes(self, tag_filters)
        if is_for_all:
            cached = self.cached_nodes
            self._note_preemptions({node_id: cached.get(node_id) for node_id in nodes})
        return nodes

    def terminate_node(self, node_id: str) -> None:
        """As Ray's."""
        self._forget([node_id])
        AWSNodeProvider.terminate_node(self, node_id)

    def terminate_nodes(self, node_ids: list[str]) -> None:
        """As Ray's."""
        self._forget(node_ids)
        AWSNodeProvider.terminate_nodes(self, node_ids)

    def find_clusters(self, prefix: str, regions: set[str]) -> set[tuple[str, str]]:
        """Names, beginning with `prefix`, and regions of clusters that have machines, in all regions of the account.

        A region that refuses to tell is passed over with a warning, unless it is one of `regions`.
        """
        filters = [
            {"Name": f"tag:{TAG_RAY_CLUSTER_NAME}", "Values": [f"{prefix}*"]},
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
        ]
        found = set()
        for region in (told["RegionName"] for told in self.ec2.meta.client.describe_regions()["Regions"]):
            client = boto3.client("ec2", region_name=region)
            try:
                for page in client.get_paginator("describe_instances").paginate(Filters=filters):
                    for instance in (i for reservation in page["Reservations"] for i in reservation["Instances"]):
                        tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
                        found.add((tags[TAG_RAY_CLUSTER_NAME], region))
            except AWS_ERRORS as error:
                if region in regions:
                    raise
                logger.warning("machines are not looked for in %s: %s", region, describe(error))
        return found

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """As Ray's, once the settings are checked.

        Raises:
            click.ClickException: a setting is wrong; Ray's command line shows it as one line.
        """
        try:
            check_cluster(cluster_config)
        except ConfigError as error:
            raise click.ClickException(str(error)) from None
        bootstrapped: dict[str, Any] = AWSNodeProvider.bootstrap_config(cluster_config)
        return bootstrapped

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """As Ray's; a node type of several instance types has what each of them has at least."""
        others = PlacementConfig.of(cluster_config["provider"]).instance_types
        filled: dict[str, Any] = AWSNodeProvider.fillout_available_node_types_resources(cluster_config)
        for depth in range(max(map(len, others.values()), default=0)):
            variant = copy.deepcopy(cluster_config)
            for name in others.keys() & variant["available_node_types"].keys():
                if depth < len(others[name]):
                    variant["available_node_types"][name]["node_config"]["InstanceType"] = others[name][depth]
            variant = AWSNodeProvider.fillout_available_node_types_resources(variant)
            for name, node_type in filled["available_node_types"].items():
                theirs = variant["available_node_types"][name]["resources"]
                ours = node_type["resources"]
                node_type["resources"] = {key: min(ours[key], theirs[key]) for key in ours if key in theirs}
        return filled

    def _ranked(self, node_config: dict[str, Any], node_type: str | None) -> list[Offer]:
        """The offers to try for a node type, best first, of the purchase kind that its `InstanceMarketOptions` tell."""
        is_spot = (node_config.get("InstanceMarketOptions") or {}).get("MarketType") == "spot"
        types = [node_config["InstanceType"], *self.placement.instance_types.get(node_type or "", [])]
        zones = list(dict.fromkeys(self._zones_of(node_config["SubnetIds"]).values()))
        ranked: list[Offer] = []
        if is_spot:
            offers = self._offers(zones, types, "spot", self._spot_prices(types, zones))
            ranked = self._rank(offers, max_spot_price(node_config))
        if not is_spot or self.placement.fall_back_to_on_demand:
            rates = self.placement.on_demand_usd_per_hour
            known = {(zone, kind): rates[kind] for zone in zones for kind in types if kind in rates}
            cap = self.placement.max_on_demand_usd_per_hour if is_spot else None
            offers = self._offers(zones, types, "on_demand", known)
            # Nobody but this keeps to the limit, so that a rate that is not known is above it.
            ranked += self._rank([offer for offer in offers if cap is None or offer.usd_per_hour is not None], cap)
        return ranked

    def _offers(
        self, zones: list[str], types: list[str], purchase: Purchase, prices: Mapping[tuple[str, str], float]
    ) -> list[Offer]:
        region = self.provider_config["region"]
        return [Offer(region, zone, kind, purchase, prices.get((zone, kind))) for kind in types for zone in zones]

    def _rank(self, offers: list[Offer], max_usd_per_hour: float | None) -> list[Offer]:
        with self._lock:
            return rank(offers, self.cooldowns, self._now(), max_usd_per_hour)

    def _cools_down(self, offer: Offer) -> bool:
        with self._lock:
            return self.cooldowns.until(offer) > self._now()

    def _spot_prices(self, types: list[str], zones: list[str]) -> dict[tuple[str, str], float]:
        """Empty if they cannot be had: then the order is that of the file, and AWS itself still keeps to `MaxPrice`."""
        try:
            return spot_prices(self.ec2.meta.client, types, zones)
        except PriceError as error:
            logger.warning("ranked without prices: %s", error)
            return {}

    def _zones_of(self, subnet_ids: Iterable[str]) -> dict[str, str]:
        subnets = list(subnet_ids)
        if unknown := [subnet for subnet in subnets if subnet not in self._zones]:
            try:
                told = self.ec2.meta.client.describe_subnets(SubnetIds=unknown)["Subnets"]
            except AWS_ERRORS as error:
                raise _launch_exception(code_of(error), describe(error)) from error
            self._zones.update({subnet["SubnetId"]: subnet["AvailabilityZone"] for subnet in told})
        return {subnet: self._zones[subnet] for subnet in subnets}

    def _request(self, offer: Offer, node_config: dict[str, Any], tags: dict[str, str]) -> dict[str, Any]:
        """For EC2's RunInstances, but for the counts."""
        request = copy.deepcopy(node_config)
        zones = self._zones_of(request.pop("SubnetIds"))
        ours = {TAG_RAY_CLUSTER_NAME: self.cluster_name, TAG_PURCHASE: offer.purchase, **to_aws_format(dict(tags))}
        specs = [{"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in ours.items()]}]
        self._merge_tag_specs(specs, request.get("TagSpecifications", []))
        if offer.purchase == "on_demand":
            request.pop("InstanceMarketOptions", None)
        return {
            **request,
            "SubnetId": next(subnet for subnet, zone in zones.items() if zone == offer.zone),
            "InstanceType": offer.instance_type,
            "TagSpecifications": specs,
        }

    def _note_preemptions(self, nodes: Mapping[str, Any]) -> None:
        """Compare with the last look: spot machines that nobody here has terminated were taken away."""
        with self._lock:
            gone = {node_id: zone for node_id, zone in self._spot_zones.items() if node_id not in nodes}
            for node_id, node in nodes.items():
                if node is not None and node.instance_lifecycle == "spot":
                    self._spot_zones[node_id] = node.placement["AvailabilityZone"]
        if not gone:
            return
        with suppress(LaunchError):  # EC2 refuses: asked again at the next look
            states = self.gangs.states(gone)
            for node_id, zone in gone.items():
                state, reason = states.get(node_id, ("", ""))
                if state in ("shutting-down", "terminated") and reason.startswith("Server."):
                    logger.warning("%s took %s away: %s", zone, node_id, reason)
                    with self._lock:
                        self.cooldowns.preempt(zone, self._now())
                if state not in ("pending", "running"):
                    self._forget([node_id])

    def _forget(self, node_ids: Iterable[str]) -> None:
        with self._lock:
            for node_id in node_ids:
                self._spot_zones.pop(node_id, None)

    def _now(self) -> float:
        return time.monotonic()

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def _no_machines(reasons: list[LaunchError], count: int) -> NodeLaunchException:
    if not reasons:
        text = "each zone and type that is allowed costs more than MaxPrice, or failed or took a machine just now"
        return _launch_exception("NoOffer", f"{count} machines: {text}")
    chosen = reasons[-1] if reasons[-1].blame is Blame.STOP else reasons[0]
    return _launch_exception(chosen.code, f"{count} machines: " + "; ".join(dict.fromkeys(map(str, reasons))))


def _launch_exception(code: str, text: str) -> NodeLaunchException:
    return NodeLaunchException(category=code, description=text, src_exc_info=None)
