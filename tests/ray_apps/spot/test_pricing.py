from pathlib import Path

import boto3
import pytest

from data_prep.errors import ConfigError
from ray_apps.spot.pricing import PriceError, egress_usd, read_egress, read_rates, spot_prices
from tests.ray_apps.spot.aws import REGION, ZONES, Cloud, client_error, out_of_reach

PRICES = {(ZONES[0], "p4d.24xlarge"): 12.5, (ZONES[1], "p4d.24xlarge"): 11.0, (ZONES[1], "p4de.24xlarge"): 15.0}


def test_the_newest_price_of_each_pool_over_all_pages(cloud: Cloud) -> None:
    cloud.prices = PRICES
    ec2 = boto3.client("ec2", region_name=REGION)
    assert spot_prices(ec2, ["p4d.24xlarge", "p4de.24xlarge"]) == PRICES
    assert len(cloud.calls) == 2 * len(PRICES)  # two prices of each, a page for each
    assert spot_prices(ec2, ["p4d.24xlarge"], zones=[ZONES[1]]) == {(ZONES[1], "p4d.24xlarge"): 11.0}
    asked = cloud.calls[-1].arguments
    assert {"Linux/UNIX", "Linux/UNIX (Amazon VPC)"} == set(asked["ProductDescriptions"])
    assert asked["StartTime"]


def test_what_moto_tells_by_itself(cloud: Cloud) -> None:
    prices = spot_prices(boto3.client("ec2", region_name=REGION), ["m5.large"], ZONES)
    assert prices == dict.fromkeys(((zone, "m5.large") for zone in ZONES), 0.00001)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (client_error("UnauthorizedOperation"), "UnauthorizedOperation: .*check the AWS credentials"),
        (client_error("RequestLimitExceeded"), "RequestLimitExceeded"),
        (out_of_reach(), "ReadTimeoutError"),
    ],
)
def test_prices_that_cannot_be_had(cloud: Cloud, error: Exception, told: str) -> None:
    cloud.before["DescribeSpotPriceHistory"] = lambda call: error
    with pytest.raises(PriceError, match=f"^spot prices of {REGION}: {told}"):
        spot_prices(boto3.client("ec2", region_name=REGION), ["m5.large"])


def test_rates_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text("us-west-2: {p4d.24xlarge: 32.77, m5.large: 1}\neu-west-1: {p4d.24xlarge: 35.4}\n")
    rates = read_rates(path)
    assert rates["us-west-2", "p4d.24xlarge"] == 32.77
    assert rates["eu-west-1", "p4d.24xlarge"] == 35.4
    assert len(rates) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("us-west-2: {m5.large: cheap}", "us-west-2.m5.large: 'cheap' is not valid; expected USD, a number above 0"),
        ("us-west-2: {m5.large: -1}", "us-west-2.m5.large: -1 is not valid"),
        ("us-west-2: {m5.large: true}", "us-west-2.m5.large: True is not valid"),
        ("us-west-2: 3", "us-west-2: 3 is not valid; expected instance types and USD per hour"),
        ("us-west-2: [", "not valid YAML"),
    ],
)
def test_rates_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_rates(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    with pytest.raises(ConfigError, match="No such file"):
        read_rates(tmp_path / "none.yaml")


def test_egress_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "egress.csv"
    path.write_text("from_region,to_region,price_usd_per_gb\nus-east-1,us-west-2,0.02\nus-east-1,us-east-2,0\n")
    table = read_egress(path)
    assert egress_usd(84e9, "us-east-1", "us-west-2", table, 0.09) == pytest.approx(1.68)
    assert egress_usd(84e9, "us-east-1", "us-east-2", table, 0.09) == 0
    assert egress_usd(1e9, "us-west-2", "us-east-1", table, 0.09) == pytest.approx(0.09)
    assert egress_usd(84e9, "us-west-2", "us-west-2", table, 0.09) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from_region,to_region\na,b\n", "line 1: no column 'price_usd_per_gb'"),
        ("from_region,to_region,price_usd_per_gb\na,b,0.1\na,c,much\n", "line 3: price_usd_per_gb: 'much'"),
        ("from_region,to_region,price_usd_per_gb\na,b\n", "line 2: price_usd_per_gb: None"),
        ("", "line 1: no column 'from_region'"),
    ],
)
def test_egress_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "egress.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_egress(path)
    assert str(caught.value).startswith(f"{path}: {message}")
