"""`provider.placement` of a cluster file: what the node provider is told, and what is refused before a start."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field

from data_prep.config import Settings
from data_prep.errors import ConfigError
from ray_apps.spot.aws_errors import Blame
from ray_apps.spot.placement import COOLDOWN_S


class PlacementConfig(Settings):
    """Where machines may be, beside what Ray's own settings say."""

    instance_types: dict[str, list[str]] = Field(default_factory=dict)
    """By node type: what its machines may be beside its `InstanceType`."""
    on_demand_usd_per_hour: dict[str, float] = Field(default_factory=dict)
    """Rates of instance types in the region."""
    fall_back_to_on_demand: bool = False
    """Where no spot machine is to be had, take an on-demand one."""
    max_on_demand_usd_per_hour: float | None = Field(None, gt=0)
    """What a machine may cost that is taken in place of a spot one; types without a known rate are then not taken."""
    cooldown_s: float = Field(COOLDOWN_S[Blame.POOL], ge=0)
    """How long a zone is let alone that had no capacity, or that has just taken a machine away."""
    timeout_s: float = Field(300.0, gt=0)
    """All machines of a request run after that long, or none stays."""

    @classmethod
    def of(cls, provider_config: Mapping[str, Any]) -> Self:
        """The section of a cluster file's `provider`. Raises ConfigError."""
        section = provider_config.get("placement")
        if not isinstance(section, Mapping | None):
            raise ConfigError(f"provider.placement: {section!r} is not valid; expected a section")
        return cls.parse(section or {}, "provider.placement")


def check_cluster(config: Mapping[str, Any]) -> None:
    """Check what of a cluster file is for the provider.

    Raises:
        ConfigError: the field, its value and what would be valid.
    """
    placement = PlacementConfig.of(config["provider"])
    node_types = config["available_node_types"]
    if unknown := sorted(set(placement.instance_types) - set(node_types)):
        valid = ", ".join(sorted(node_types))
        raise ConfigError(f"provider.placement.instance_types: {unknown[0]!r} is no node type; valid: {valid}")
    for name, node_type in node_types.items():
        _check_node(f"available_node_types.{name}.node_config", node_type["node_config"])


def _check_node(where: str, node: Mapping[str, Any]) -> None:
    if "NetworkInterfaces" in node:
        raise ConfigError(f"{where}.NetworkInterfaces: binds machines to a zone; give SubnetIds and SecurityGroupIds")
    if "InstanceType" not in node:
        raise ConfigError(f"{where}.InstanceType: is required")
    max_spot_price(node, where)


def max_spot_price(node: Mapping[str, Any], where: str = "node_config") -> float | None:
    """`MaxPrice` of a node type in USD per hour, None if it has none. Raises ConfigError if that is no price."""
    options = (node.get("InstanceMarketOptions") or {}).get("SpotOptions") or {}
    if "MaxPrice" not in options:
        return None
    price = options["MaxPrice"]
    try:
        usd = float(price) if isinstance(price, str) else float("nan")
    except ValueError:
        usd = float("nan")
    if not 0 < usd < float("inf"):
        raise ConfigError(
            f"{where}.InstanceMarketOptions.SpotOptions.MaxPrice: {price!r} is not valid; expected USD per hour, quoted"
        )
    return usd
