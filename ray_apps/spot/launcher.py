"""Clusters of Ray's launcher: one template, put in place for each zone; started, counted and taken down by name."""

import copy
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from ray.autoscaler import sdk
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from data_prep.errors import ConfigError, SpotError
from ray_apps.config import load_yaml
from ray_apps.spot.aws_errors import Blame, blame_code
from ray_apps.spot.bring_up import Launcher, StartError
from ray_apps.spot.config import SpotConfig
from ray_apps.spot.placement import Offer, Purchase
from ray_apps.spot.pricing import PriceError, read_egress, read_rates, spot_prices

END_POLL_S = 3.0
END_TRIES = 100
QUIET_LOOKS = 2
"""How often nothing must be found before nothing is left: a head's autoscaler may just have asked for a worker."""

Prices = Callable[[str, list[str], list[str]], Mapping[tuple[str, str], float]]


def spot_prices_of(region: str, instance_types: list[str], zones: list[str]) -> Mapping[tuple[str, str], float]:
    """Live prices of a region; none where they cannot be had, so that the region comes last."""
    import boto3

    try:
        return spot_prices(boto3.client("ec2", region_name=region), instance_types, zones)
    except PriceError as error:
        click.echo(f"without prices: {error}", err=True)
        return {}


class RayClusters:
    """Clusters of the template that `config` names.

    Raises:
        ConfigError: the template has no such node type, or no provider.
    """

    def __init__(self, config: SpotConfig, prices: Prices = spot_prices_of) -> None:
        self._config = config
        self._prices = prices
        self._template = load_yaml(Path(config.template))
        types = self._template.get("available_node_types") or {}
        if config.node_type not in types:
            raise ConfigError(
                f"spot.node_type: {config.node_type!r} is not in {config.template}; valid: {', '.join(types)}"
            )
        self._node = types[config.node_type]["node_config"]
        self._rates = read_rates(Path(config.rates)) if config.rates else {}

    def offers(self) -> list[Offer]:
        """The template's instance type in each zone, at the price of now."""
        kind = self._node.get("InstanceType", "")
        purchase: Purchase = "spot" if self._node.get("InstanceMarketOptions") else "on_demand"
        found = []
        for region, zones in self._config.zones.items():
            spot = self._prices(region, [kind], zones) if purchase == "spot" else {}
            for zone in zones:
                usd = spot.get((zone, kind)) if purchase == "spot" else self._rates.get((region, kind))
                found.append(Offer(region, zone, kind, purchase, usd))
        return found

    def render(self, name: str, region: str, zone: str) -> dict[str, Any]:
        """The template with its place, name and number of workers."""
        cluster = copy.deepcopy(self._template)
        num = self._config.num_workers
        cluster["cluster_name"] = name
        cluster["provider"] |= {"region": region, "availability_zone": zone}
        node = cluster["available_node_types"][self._config.node_type]
        node["min_workers"] = num
        node["max_workers"] = max(num, node.get("max_workers", num))
        cluster["max_workers"] = max(num, cluster.get("max_workers", num))
        return cluster

    def start(self, name: str, offer: Offer) -> None:
        """`ray up`, without its questions and its cache."""
        try:
            sdk.create_or_update_cluster(self.render(name, offer.region, offer.zone), no_config_cache=True)
        except NodeLaunchException as error:
            blamed = blame_code(error.category)
            raise StartError(Blame.POOL if blamed is Blame.RETRY else blamed, str(error)) from error
        except click.ClickException as error:  # Ray has printed what it is
            raise StartError(Blame.STOP, error.message or "Ray's launcher gave up; see above") from error
        except (OSError, subprocess.SubprocessError) as error:
            raise StartError(Blame.STOP, str(error)) from error

    def num_workers(self, name: str, region: str, zone: str) -> int:
        """Workers on which Ray runs."""
        tags = {
            TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
            TAG_RAY_USER_NODE_TYPE: self._config.node_type,
            TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
        }
        return len(self._provider(name, region, zone).non_terminated_nodes(tags))

    def end(self, name: str, region: str, zone: str) -> int:
        """Terminate all machines with the cluster's name; `ray down` would first wait for a head that may be dead."""
        provider = self._provider(name, region, zone)
        ended: set[str] = set()
        num_quiet = 0
        for _ in range(END_TRIES):
            nodes = provider.non_terminated_nodes({})
            if nodes:
                provider.terminate_nodes(nodes)
                ended |= set(nodes)
            num_quiet = 0 if nodes else num_quiet + 1
            if num_quiet >= (QUIET_LOOKS if ended else 1):
                return len(ended)
            time.sleep(END_POLL_S)
        raise SpotError(f"{name}: {len(nodes)} machines in {region} are not terminated: {', '.join(sorted(nodes))}")

    def _provider(self, name: str, region: str, zone: str) -> Any:
        return _get_node_provider(self.render(name, region, zone)["provider"], name)


def make_launcher(config: SpotConfig) -> Launcher:
    """The launcher of a recipe. Raises ConfigError for files that are wrong, SpotError for a state that is."""
    return Launcher(config, RayClusters(config), read_egress(Path(config.egress)) if config.egress else {})
