"""What machines cost: spot prices as they are now, on-demand rates and the price of moving data from files.

AWS tells spot prices through EC2; on-demand rates and egress prices are inputs, since they come from a price list that
changes a few times a year and differs by contract.
"""

import csv
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_prep.errors import ConfigError
from ray_apps.config import load_yaml
from ray_apps.spot.aws_errors import describe

logger = logging.getLogger(__name__)

EGRESS_COLUMNS = ("from_region", "to_region", "price_usd_per_gb")


class PriceError(Exception):
    """Prices cannot be had now. The message is one line."""


def spot_prices(
    ec2: Any, instance_types: Iterable[str], zones: Iterable[str] | None = None, now: datetime | None = None
) -> dict[tuple[str, str], float]:
    """Prices of spot machines with Linux, in USD per hour, by (zone, instance type).

    A pool without a price is one in which the type is not offered, and is left out.

    Args:
        ec2: a client of boto3's of the region.
        instance_types: which.
        zones: which; all of the region if not given.
        now: the moment of the prices; the present if not given.

    Raises:
        PriceError: AWS refuses, or does not answer.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    query: dict[str, Any] = {
        "InstanceTypes": sorted(set(instance_types)),
        "ProductDescriptions": ["Linux/UNIX", "Linux/UNIX (Amazon VPC)"],
        "StartTime": now or datetime.now(UTC),  # with it AWS tells the price that holds then, and later ones
    }
    if zones is not None:
        query["Filters"] = [{"Name": "availability-zone", "Values": sorted(set(zones))}]
    newest: dict[tuple[str, str], tuple[datetime, float]] = {}
    try:
        for page in ec2.get_paginator("describe_spot_price_history").paginate(**query):
            for told in page["SpotPriceHistory"]:
                pool = (told["AvailabilityZone"], told["InstanceType"])
                entry = (_utc(told["Timestamp"]), float(told["SpotPrice"]))
                newest[pool] = max(newest.get(pool, entry), entry)
    except (BotoCoreError, ClientError) as error:
        raise PriceError(f"spot prices of {ec2.meta.region_name}: {describe(error)}") from error
    except (KeyError, ValueError, TypeError, ResponseParserError) as error:
        raise PriceError(f"spot prices of {ec2.meta.region_name}: not what AWS documents: {error!r}") from error
    return {pool: price for pool, (_, price) in newest.items()}


def spot_prices_of(region: str, instance_types: list[str], zones: list[str]) -> Mapping[tuple[str, str], float]:
    """Live prices of a region; none where they cannot be had, so that the region comes last."""
    import boto3

    try:
        return spot_prices(boto3.client("ec2", region_name=region), instance_types, zones)
    except PriceError as error:
        logger.warning("without prices: %s", error)
        return {}


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def read_rates(path: Path) -> dict[tuple[str, str], float]:
    """On-demand rates in USD per hour by (region, instance type), from YAML: `us-west-2: {p4d.24xlarge: 32.77}`.

    Raises:
        ConfigError: no such file, or a rate that is no positive number; names the file and the field.
    """
    rates: dict[tuple[str, str], float] = {}
    for region, types in load_yaml(path).items():
        if not isinstance(types, Mapping):
            raise ConfigError(f"{path}: {region}: {types!r} is not valid; expected instance types and USD per hour")
        for instance_type, rate in types.items():
            rates[str(region), str(instance_type)] = _usd(rate, f"{path}: {region}.{instance_type}")
    return rates


def read_egress(path: Path) -> dict[tuple[str, str], float]:
    """Prices of moving data in USD per GB by (from region, to region), from CSV with a header line.

    Raises:
        ConfigError: no such file, a column is missing, or a price is no number from 0; names the file and the line.
    """
    try:
        with path.open(newline="") as lines:
            reader = csv.DictReader(lines)
            if missing := [column for column in EGRESS_COLUMNS if column not in (reader.fieldnames or [])]:
                raise ConfigError(f"{path}: line 1: no column {missing[0]!r}; expected {','.join(EGRESS_COLUMNS)}")
            return {
                (row["from_region"], row["to_region"]): _usd(
                    row["price_usd_per_gb"], f"{path}: line {reader.line_num}: price_usd_per_gb", least_is_zero=True
                )
                for row in reader
            }
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: {error}") from None


def egress_usd(
    num_bytes: float, source: str, target: str, usd_per_gb: Mapping[tuple[str, str], float], default_usd_per_gb: float
) -> float:
    """What it costs to move `num_bytes` from one region to another; nothing within a region. A GB is 1e9 bytes.

    `default_usd_per_gb`: for pairs of regions that the table does not have.
    """
    if source == target:
        return 0.0
    return num_bytes / 1e9 * usd_per_gb.get((source, target), default_usd_per_gb)


def _usd(value: Any, where: str, *, least_is_zero: bool = False) -> float:
    try:
        usd = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        usd = float("nan")
    if not (0 < usd < float("inf") or (least_is_zero and usd == 0)):
        raise ConfigError(
            f"{where}: {value!r} is not valid; expected USD, a number {'from' if least_is_zero else 'above'} 0"
        )
    return usd
