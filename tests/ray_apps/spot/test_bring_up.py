"""The launcher over clusters that live in a dict: what is asked for where, and what is left, whatever happens."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import ConfigError, SpotError
from ray_apps.spot.aws_errors import Blame
from ray_apps.spot.bring_up import Launcher, StartError
from ray_apps.spot.config import SpotConfig
from ray_apps.spot.placement import Offer

ZONES = {"east": ["east-a", "east-b"], "west": ["west-a"]}
PRICES = {"east-a": 11.0, "east-b": 10.0, "west-a": 12.0}
EGRESS = {("east", "west"): 0.02, ("west", "east"): 0.02}


@dataclass
class Fakes:
    """`faults`: by zone, what its next start fails with. `silent`: zones in which heads get no workers."""

    faults: dict[str, list[Blame | None]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    machines: dict[str, int] = field(default_factory=dict)  # workers, by cluster
    started: list[str] = field(default_factory=list)
    prices: dict[str, float] = field(default_factory=lambda: dict(PRICES))

    def offers(self) -> list[Offer]:
        return [Offer(r, z, "p4d", "spot", self.prices.get(z)) for r, zones in ZONES.items() for z in zones]

    def start(self, name: str, offer: Offer) -> None:
        self.started.append(offer.zone)
        self.machines[name] = 0
        faults = self.faults.get(offer.zone) or [None]
        if blamed := faults.pop(0):
            raise StartError(blamed, blamed.value)
        self.machines[name] = 0 if offer.zone in self.silent else 2

    def num_workers(self, name: str, region: str, zone: str) -> int:
        return self.machines.get(name, 0)

    def end(self, name: str, region: str, zone: str) -> int:
        return 0 if self.machines.pop(name, None) is None else 1


class Clock:
    def __init__(self) -> None:
        self.time = 1e9

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def launcher(path: Path, fakes: Fakes, clock: Clock, **settings: Any) -> Launcher:
    values = {"name": "run", "zones": ZONES, "num_workers": 2, "state": str(path / "spot.json"), **settings}
    return Launcher(SpotConfig.parse(values, "spot"), fakes, EGRESS, now=clock.now, sleep=clock.sleep)


def test_the_cheapest_zone_and_the_same_cluster_again(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    cluster = launcher(tmp_path, fakes, clock).up()
    assert (cluster.name, cluster.is_up, cluster.usd_per_hour) == ("run-east-b", True, 20.0)
    assert launcher(tmp_path, fakes, clock).up() == cluster
    assert fakes.started == ["east-b"]
    assert launcher(tmp_path, fakes, clock).down() == 1
    assert fakes.machines == {}


def test_status(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    assert launcher(tmp_path, fakes, clock).status() == "no cluster; $0.00 spent, 0 starts"
    launcher(tmp_path, fakes, clock).up()
    clock.time += 1800
    told = launcher(tmp_path, fakes, clock).status()
    assert told == "run-east-b in east-b: up, 2 of 2 workers, $20.00/h; $10.00 spent, 1 starts"


def test_moving_a_checkpoint_counts_against_a_cheaper_region(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    moved = {"checkpoint_gb": 200.0, "checkpoint_region": "west", "work_h": 0.5, "cold_start_h": 0.2}
    assert launcher(tmp_path, fakes, clock, **moved).up().zone == "west-a"  # 0.7 h × $4 less than 200 × $0.02
    assert launcher(tmp_path / "long", fakes, clock, **{**moved, "work_h": 5.0}).up().zone == "east-b"


@pytest.mark.parametrize(
    ("blame", "started"),
    [
        (Blame.POOL, ["east-b", "east-a"]),
        (Blame.REGION, ["east-b", "west-a"]),
        (Blame.OFFER, ["east-b", "east-a"]),
    ],
)
def test_a_failure_leads_to_another_place(tmp_path: Path, blame: Blame, started: list[str]) -> None:
    fakes, clock = Fakes({"east-b": [blame]}), Clock()
    up = launcher(tmp_path, fakes, clock).up()
    assert fakes.started == started
    assert set(fakes.machines) == {up.name}


def test_an_error_that_is_the_same_everywhere_stops(tmp_path: Path) -> None:
    fakes, clock = Fakes({"east-b": [Blame.STOP]}), Clock()
    with pytest.raises(SpotError, match="no machines: east-b: stop"):
        launcher(tmp_path, fakes, clock).up()
    assert (fakes.started, fakes.machines) == (["east-b"], {})


def test_a_head_without_workers_is_given_up(tmp_path: Path) -> None:
    fakes, clock = Fakes(silent={"east-b"}), Clock()
    assert launcher(tmp_path, fakes, clock, start_timeout_s=60).up().zone == "east-a"
    assert clock.time >= 1e9 + 60
    assert set(fakes.machines) == {"run-east-a"}
    # What failed is remembered by the next launcher, and comes back.
    launcher(tmp_path, fakes, clock).down()
    fakes.silent.clear()
    assert launcher(tmp_path, fakes, clock).up().zone == "east-a"
    launcher(tmp_path, fakes, clock).down()
    clock.time += 1000
    assert launcher(tmp_path, fakes, clock).up().zone == "east-b"


def test_a_region_that_dies_is_left_for_another(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    launcher(tmp_path, fakes, clock).up()
    fakes.machines["run-east-b"] = 0
    clock.time += 3600
    moved = launcher(tmp_path, fakes, clock)
    assert moved.up().zone == "east-a"
    assert moved.state.spent_usd == pytest.approx(20.0)
    assert set(fakes.machines) == {"run-east-a"}


def test_limits(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    limited = launcher(tmp_path, fakes, clock, max_cost_usd=30.0, deadline_h=10.0)
    limited.up()
    clock.time += 3600
    limited.check_limits()
    clock.time += 1800
    with pytest.raises(SpotError, match=r"max_cost_usd: \$30.00 of \$30.00 are spent"):
        limited.check_limits()
    fakes.machines.clear()
    with pytest.raises(SpotError, match="max_cost_usd"):
        launcher(tmp_path, fakes, clock, max_cost_usd=30.0).up()
    assert fakes.machines == {}
    clock.time += 36000
    with pytest.raises(SpotError, match=r"deadline_h: 11.5 of 10.0 h have passed"):
        launcher(tmp_path, fakes, clock, deadline_h=10.0).up()
    assert fakes.machines == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cluster": {"name": 3}, "cooldowns": []}', '{"cluster": null}'])
def test_a_torn_state_is_not_taken_for_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "spot.json").write_text(text)
    with pytest.raises(SpotError, match=r"spot.json: not a state of the launcher"):
        launcher(tmp_path, Fakes(), Clock())


def test_settings_that_are_wrong() -> None:
    with pytest.raises(ConfigError, match=r"spot: zones.east: 'west-a' is not in this region"):
        SpotConfig.parse({"zones": {"east": ["west-a"]}}, "spot")
    with pytest.raises(ConfigError, match=r"spot.name: 'My Run' is not valid"):
        SpotConfig.parse({"zones": ZONES, "name": "My Run"}, "spot")


class Killed(BaseException):
    """SIGKILL: no code runs after it."""


@given(data=st.data(), kill_at=st.integers(0, 12), again_at=st.integers(0, 12))
def test_a_launcher_that_is_killed_leaves_nothing_that_the_next_does_not_end(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kill_at: int, again_at: int
) -> None:
    path, clock, left = tmp_path_factory.mktemp("state"), Clock(), [kill_at]
    blames = st.lists(st.none() | st.sampled_from([Blame.POOL, Blame.REGION, Blame.OFFER]), max_size=3)
    fakes = Fakes({zone: data.draw(blames) for zone in PRICES})

    def counted(call: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            if left[0] < 0:
                raise Killed
            left[0] -= 1
            if left[0] < 0:
                if data.draw(st.booleans()):
                    call(*args)  # done, but nobody heard of it
                raise Killed
            return call(*args)

        return wrapped

    def make() -> Launcher:
        made = Fakes(fakes.faults, fakes.silent, fakes.machines, fakes.started)
        for name in ("start", "end", "num_workers"):
            setattr(made, name, counted(getattr(made, name)))
        return launcher(path, made, clock)

    for at in (kill_at, again_at):
        left[0] = at
        with suppress(Killed, SpotError):
            make().up()
    left[0] = 1000
    try:
        up = make().up()
        assert set(fakes.machines) == {up.name}
    except SpotError:
        pass
    make().down()
    assert fakes.machines == {}
