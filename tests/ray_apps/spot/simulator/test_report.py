"""`vicuna spot simulate` as a person runs it."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from click.testing import CliRunner

from data_prep.errors import ConfigError, DataError
from ray_apps.cli import vicuna


@pytest.fixture
def traces(tmp_path: Path) -> list[str]:
    for zone, price, available in (("us-east-1a", "0.5", "1101"), ("us-west-2b", "0.9", "1111")):
        rows = [f"2024-01-{1 + n // 24:02} {n % 24:02}:00:00,{available[n // 8 % 4]},{price}" for n in range(200)]
        (tmp_path / f"{zone}.csv").write_text("date,available,spot_usd_per_hour\n" + "\n".join(rows))
    return sorted(str(path) for path in tmp_path.glob("*.csv"))


def run(*arguments: str) -> str:
    result = CliRunner().invoke(vicuna, ["spot", "simulate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_policy_stands_beside_what_else_one_could_do(traces: list[str], tmp_path: Path) -> None:
    plot = tmp_path / "path.svg"
    settings = ("job.work_h=20", "job.cold_start_h=1", "policy.deadline_h=40")
    lines = json.loads(
        run(*traces, *settings, "--start", "0", "--start", "30", "--json", "--plot", str(plot)).splitlines()[0]
    )
    costs = {line["name"]: sum(line["usd"]) / 2 for line in lines}
    assert [*costs] == [
        "this policy",
        "eager failover",
        "us-east-1a alone",
        "us-west-2b alone",
        "on demand",
        "offline optimum",
    ]
    assert costs["offline optimum"] <= min(costs.values())
    assert costs["this policy"] < costs["on demand"] == pytest.approx(21 * 3.06)
    assert all(line["num_late"] == 0 for line in lines)
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")


def test_prices_may_be_those_of_other_machines(traces: list[str]) -> None:
    settings = ("job.work_h=20", "job.egress_usd_per_gb=0", "policy.deadline_h=40", "--json")
    once, tenfold = (
        json.loads(run(*traces, *settings, f"job.price_scale={by}", f"job.on_demand_usd_per_hour={3 * by}"))
        for by in (1, 10)
    )
    assert [line["usd"][0] for line in tenfold] == pytest.approx([10 * line["usd"][0] for line in once], rel=1e-3)


def test_job_and_policy_may_be_those_of_a_recipe(traces: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    zones = {"us-east-1": ["us-east-1a"]}
    spot = {"zones": zones, "job": {"work_h": 20.0, "cold_start_h": 1.0}, "policy": {"deadline_h": 40}}
    recipe.write_text(yaml.safe_dump({"spot": spot}))
    same = ("job.work_h=20", "job.cold_start_h=1", "policy.deadline_h=40")
    assert run(*traces, "--json", "--recipe", str(recipe)) == run(*traces, "--json", *same)
    other = run(*traces, "--json", "--recipe", str(recipe), "job.work_h=10")
    assert other == run(*traces, "--json", "job.work_h=10", *same[1:])


def test_the_table_names_everything(traces: list[str]) -> None:
    told = run(*traces, "job.work_h=20", "policy.deadline_h=40")
    for word in ("saved", "late", "migrations", "productive", "wasted", "offline optimum"):
        assert word in told


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["policy.deadline_h=10"], ConfigError, "policy.deadline_h: 10 is not valid; work and cold start take 40.2 h"),
        (["policy.deadline_h=500"], DataError, "the trace covers 200.0 h"),
        (["policy.patience=1"], ConfigError, "did you mean 'patience_h'"),
        (["job.work_h=-1"], ConfigError, "job.work_h: -1"),
    ],
)
def test_mistakes_are_told(traces: list[str], words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(*traces, *words)
