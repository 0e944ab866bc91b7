"""The launcher over clusters that live in a dict: what is asked for where, and what is left, whatever happens."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from data_prep.errors import ConfigError, SpotError
from ray_apps.spot.aws_errors import Blame
from ray_apps.spot.bring_up import Launcher
from ray_apps.spot.clusters import Sight, SilentError, StartError
from ray_apps.spot.config import SpotConfig
from ray_apps.spot.launch_state import Cluster
from ray_apps.spot.limits import STOP_S
from ray_apps.spot.notices import Machine, Notice
from ray_apps.spot.placement import Offer
from ray_apps.spot.records import NewNotices, Record, write_record

ZONES = {"east": ["east-a", "east-b"], "west": ["west-a"]}
PRICES = {"east-a": 11.0, "east-b": 10.0, "west-a": 12.0}
EGRESS = {("east", "west"): 0.02, ("west", "east"): 0.02}
AT_ONCE = {"patience_h": 0, "price_margin": None}
"""The policy of eager failover."""


@dataclass
class Fakes:
    """`faults`: by zone, what its next starts of spot machines fail with.

    `silent`: zones in which heads get no workers, and say why not in `troubles`. `away`: zones that do not answer.
    `stuck`: those in which nothing can be ended.
    """

    faults: dict[str, list[Blame | None]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    troubles: dict[str, Blame] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    machines: dict[str, Sight] = field(default_factory=dict)  # by cluster
    started: list[str] = field(default_factory=list)
    prices: dict[str, float] = field(default_factory=lambda: dict(PRICES))
    takes: Callable[[float], None] = lambda most_s: None  # what a start or an end does, which may take so long
    on_demand: float | None = None

    def offers(self) -> list[Offer]:
        places = [(region, zone) for region, zones in ZONES.items() for zone in zones]
        found = [Offer(region, zone, "p4d", "spot", self.prices.get(zone)) for region, zone in places]
        if self.on_demand is not None:
            found += [Offer(region, zone, "p4d", "on_demand", self.on_demand) for region, zone in places]
        return found

    def start(self, cluster: Cluster) -> None:
        self.started.append(cluster.name.removeprefix("run_"))
        self.machines[cluster.name] = Sight(True, 0)
        self.takes(720)
        faults = (cluster.purchase == "spot" and self.faults.get(cluster.zone)) or [None]
        if blamed := faults.pop(0):
            raise StartError(blamed, blamed.value, was_paid=blamed is Blame.ZONE)
        if cluster.zone not in self.silent:
            self.machines[cluster.name] = Sight(True, 2)

    def look(self, cluster: Cluster) -> Sight:
        if cluster.zone in self.away:
            raise SilentError(f"{cluster.zone} does not answer")
        return self.machines.get(cluster.name, Sight(False, 0))

    def trouble(self, cluster: Cluster) -> StartError | None:
        blamed = self.troubles.get(cluster.zone)
        return StartError(blamed, f"the head says {blamed.value}") if blamed else None

    def end(self, cluster: Cluster) -> int:
        if cluster.zone in self.stuck:
            raise SpotError(f"{cluster.name} cannot be ended")
        self.takes(60)
        return 0 if self.machines.pop(cluster.name, None) is None else 1

    def end_all(self, name: str) -> int:
        return sum(
            self.machines.pop(cluster) is not None
            for cluster in list(self.machines)
            if cluster[: len(name) + 1] == f"{name}_"
        )


class Clock:
    def __init__(self) -> None:
        self.time = 1e9

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def launcher(path: Path, fakes: Fakes, clock: Clock, *, policy: dict[str, Any] = AT_ONCE, **settings: Any) -> Launcher:
    values = {"name": "run", "zones": ZONES, "num_workers": 2, "state": str(path / "spot.json"), "policy": policy}
    values["job"] = {"work_h": 1.0, "checkpoint_gb": 0.0, "cold_start_h": 0.2} | settings.pop("job", {})
    config = SpotConfig.parse({**values, **settings}, "spot")
    return Launcher(config, fakes, EGRESS, now=clock.now, sleep=clock.sleep)


def test_the_cheapest_zone_and_the_same_cluster_again(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    cluster = launcher(tmp_path, fakes, clock).up()
    assert (cluster.name, cluster.usd_per_hour) == ("run_east-b", 20.0)
    assert launcher(tmp_path, fakes, clock).up().name == cluster.name
    assert fakes.started == ["east-b"]
    assert launcher(tmp_path, fakes, clock).down() == 1
    assert fakes.machines == {}


def test_status(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    assert launcher(tmp_path, fakes, clock).status() == "no cluster; $0.00 spent, 0 starts"
    launcher(tmp_path, fakes, clock).up()
    clock.time += 1800
    told = launcher(tmp_path, fakes, clock).status()
    assert told == "run_east-b in east-b: up, 2 of 2 workers, $20.00/h; $10.00 spent, 1 starts"
    fakes.away = {"east-b"}
    assert "does not answer" in launcher(tmp_path, fakes, clock).status()


def test_a_price_counts_from_when_it_holds(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    started = launcher(tmp_path, fakes, clock)
    started.up()
    clock.time += 3600
    fakes.prices["east-b"] = 15.0
    started.up()
    clock.time += 3600
    assert started.state.usd(clock.time) == pytest.approx(20.0 + 30.0)


def test_moving_a_checkpoint_counts_against_a_cheaper_region(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    job = {"checkpoint_gb": 200.0, "work_h": 0.5, "checkpoint_every_h": 100.0}
    # 200 × $0.02, and $0.04/h for saves, against $4/h more
    assert launcher(tmp_path, fakes, clock, store_region="west", job=job).up().zone == "west-a"
    job["work_h"] = 5.0
    moved = launcher(tmp_path / "long", fakes, clock, store_region="west", job=job)
    assert moved.up().zone == "east-b"
    assert moved.state.usd(clock.time) == pytest.approx(4.0)
    job["checkpoint_every_h"] = 0.5  # $8/h for saves
    assert launcher(tmp_path / "often", fakes, clock, store_region="west", job=job).up().zone == "west-a"


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


def test_clusters_that_break_wherever_they_are_stop(tmp_path: Path) -> None:
    fakes, clock = Fakes({zone: [Blame.ZONE] * 9 for zone in PRICES}), Clock()
    with pytest.raises(SpotError, match="no machines: east-a: zone"):
        launcher(tmp_path, fakes, clock).up()
    assert (fakes.started, fakes.machines) == (["east-b", "east-a", "west-a", "east-b", "east-a"], {})


def test_clusters_that_are_of_no_use_stop(tmp_path: Path) -> None:
    """They come up, and die before there is a step."""
    fakes, clock = Fakes(), Clock()
    run = launcher(tmp_path, fakes, clock)

    def go_on() -> None:
        while True:
            run.step(1.0)
            fakes.machines.clear()
            clock.sleep(60)

    with pytest.raises(SpotError, match="5 clusters in a row did no work"):
        go_on()
    assert len(fakes.started) == 6
    assert fakes.machines == {}


def test_a_mistake_elsewhere_ends_no_run_that_is_at_work(tmp_path: Path) -> None:
    fakes, clock = Fakes({zone: [Blame.POOL] * 2 for zone in PRICES}, on_demand=30.0), Clock()
    run = launcher(tmp_path, fakes, clock, policy={**AT_ONCE, "deadline_h": 2.6}, job={"work_h": 2.0}, cooldown_s=600)
    while run.state.cluster is None:
        if not run.step(2.0):
            clock.sleep(60)
    fakes.faults = {zone: [Blame.STOP] for zone in PRICES}
    for _ in range(40):
        run.step(0.1)
        clock.sleep(60)
    assert run.state.cluster is not None
    assert len(fakes.started) > 4


def test_a_state_of_another_run(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    first = launcher(tmp_path, fakes, clock, store="s3://bucket/first")
    first.holdings.begin(first.config.store)
    first.up()
    second = launcher(tmp_path, fakes, clock, store="s3://bucket/second")
    with pytest.raises(SpotError, match=r"spot.json: is of the run in s3://bucket/first, which has machines; "):
        second.holdings.begin(second.config.store)
    launcher(tmp_path, fakes, clock, store="s3://bucket/first").down()
    clock.sleep(1e6)
    second = launcher(tmp_path, fakes, clock, store="s3://bucket/second", policy={**AT_ONCE, "deadline_h": 9})
    second.holdings.begin(second.config.store)
    assert second.up().zone == "east-b"  # with limits of its own
    assert SpotConfig.parse({"zones": ZONES, "name": "mine"}, "spot").state_path == "artifacts/spot-mine.json"


def test_a_price_that_is_not_told_leaves_the_last(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    run = launcher(tmp_path, fakes, clock, policy={**AT_ONCE, "max_cost_usd": 900})
    run.up()
    fakes.prices = {}
    for _ in range(20):
        clock.sleep(60)
        assert not run.step(1.0)
    assert run.state.usd(clock.time) == pytest.approx(20 / 3)


def test_quotas_of_nothing_everywhere_are_told_at_once(tmp_path: Path) -> None:
    fakes, clock = Fakes({"east-b": [Blame.REGION], "west-a": [Blame.REGION]}), Clock()
    with pytest.raises(SpotError, match="no machines: east-b: region; west-a: region"):
        launcher(tmp_path, fakes, clock).up()
    assert clock.time == 1e9


def test_it_waits_where_there_is_no_room_and_gives_up_when_told_to(tmp_path: Path) -> None:
    fakes, clock = Fakes({zone: [Blame.POOL] for zone in PRICES}), Clock()
    assert launcher(tmp_path, fakes, clock, cooldown_s=600).up().zone == "east-b"
    assert clock.time >= 1e9 + 600
    full = Fakes({zone: [Blame.POOL] * 99 for zone in PRICES})
    with pytest.raises(SpotError, match="no machines: east-a: pool; east-b: pool; west-a: pool"):
        launcher(tmp_path / "full", full, clock, give_up_h=1.0).up()
    assert full.machines == {}


def test_patience_waits_for_a_fair_price(tmp_path: Path) -> None:
    fakes, clock = Fakes({"east-b": [Blame.POOL]}), Clock()
    up = launcher(tmp_path, fakes, clock, policy={"patience_h": 2, "price_margin": 0.05}, cooldown_s=600).up()
    assert (up.zone, fakes.started) == ("east-b", ["east-b", "east-b"])


def test_a_head_that_gets_no_workers_is_given_up(tmp_path: Path) -> None:
    fakes, clock = Fakes(silent={"east-b"}), Clock()
    assert launcher(tmp_path, fakes, clock, start_timeout_s=60).up().zone == "east-a"
    assert clock.time >= 1e9 + 60
    assert set(fakes.machines) == {"run_east-a"}
    # What failed is remembered by the next launcher, and comes back.
    launcher(tmp_path, fakes, clock).down()
    fakes.silent.clear()
    assert launcher(tmp_path, fakes, clock).up().zone == "east-a"
    launcher(tmp_path, fakes, clock).down()
    clock.time += 1000
    assert launcher(tmp_path, fakes, clock).up().zone == "east-b"


def test_a_head_that_says_why_it_gets_no_workers_is_given_up_at_once(tmp_path: Path) -> None:
    fakes, clock = Fakes(silent={"east-b", "east-a"}, troubles={"east-b": Blame.REGION}), Clock()
    assert launcher(tmp_path, fakes, clock).up().zone == "west-a"
    assert clock.time == 1e9


def test_a_region_that_dies_is_left_for_another(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    launcher(tmp_path, fakes, clock, policy={}).up()
    fakes.machines.clear()
    clock.time += 3600
    moved = launcher(tmp_path, fakes, clock, policy={"price_margin": 0.1})  # patient, but not for what has died
    assert moved.up().zone == "east-a"
    assert moved.state.spent_usd == pytest.approx(20.0)
    assert set(fakes.machines) == {"run_east-a"}


def test_lost_workers_are_waited_for_by_a_patient_policy(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    patient = launcher(tmp_path, fakes, clock, policy={"patience_h": 2}, start_timeout_s=600)
    patient.up()
    fakes.machines["run_east-b"] = Sight(True, 1)
    for _ in range(3):
        assert not patient.step(1.0)
        clock.sleep(100)
    assert patient.state.cluster is not None
    assert patient.state.cluster.lost_at is not None
    fakes.machines["run_east-b"] = Sight(True, 2)
    assert patient.up().lost_at is None
    assert fakes.started == ["east-b"]


def test_lost_workers_are_replaced_elsewhere_by_an_eager_policy(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    eager = launcher(tmp_path, fakes, clock)
    eager.up()
    fakes.machines["run_east-b"] = Sight(True, 1)
    assert eager.up().zone == "east-a"
    assert set(fakes.machines) == {"run_east-a"}


def test_an_elastic_run_goes_on_with_less(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    elastic = launcher(tmp_path, fakes, clock, min_workers=1)
    elastic.up()
    fakes.machines["run_east-b"] = Sight(True, 1)
    assert elastic.up().zone == "east-b"


def test_lost_workers_of_which_the_head_knows_that_none_come(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    patient = launcher(tmp_path, fakes, clock, policy={"patience_h": 2, "price_margin": 9})
    patient.up()
    fakes.machines["run_east-b"] = Sight(True, 0)
    fakes.troubles["east-b"] = Blame.POOL
    while patient.state.cluster is not None:
        patient.step(1.0)
        clock.sleep(10)
    assert clock.time < 1e9 + 60
    assert fakes.machines == {}  # nothing is paid for while it waits


def test_a_region_that_is_silent_is_left_only_if_others_answer(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    eager = launcher(tmp_path, fakes, clock)
    eager.up()
    fakes.away = fakes.stuck = {"east-b"}
    for _ in range(100):
        eager.step(1.0)
        clock.sleep(60)
    assert fakes.started == ["east-b"]
    while len(fakes.started) == 1:
        eager.step(1.0, is_online=True)
        clock.sleep(60)
    # What could not be ended is not forgotten, is paid for, and is not started over.
    assert set(fakes.machines) == {"run_east-b", "run_east-a"}
    assert "to be ended: run_east-b" in eager.status()
    spent = eager.state.usd(clock.time)
    clock.sleep(3600)
    assert eager.state.usd(clock.time) == pytest.approx(spent + 20 + 22)
    fakes.stuck = set()
    launcher(tmp_path, fakes, clock).step(1.0)
    assert set(fakes.machines) == {"run_east-a"}


def test_down_says_what_cannot_be_ended(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    launcher(tmp_path, fakes, clock).up()
    fakes.stuck = {"east-b"}
    fakes.machines["run_south-c"] = Sight(True, 1)  # of a zone that the recipe no longer has
    with suppress(SpotError):
        launcher(tmp_path, fakes, clock).down()
    assert "run_south-c" not in fakes.machines


def test_on_demand_where_the_deadline_needs_it_and_back(tmp_path: Path) -> None:
    fakes, clock = Fakes({zone: [Blame.POOL] * 2 for zone in PRICES}, on_demand=30.0), Clock()
    policy = {**AT_ONCE, "deadline_h": 3.0}
    run = launcher(tmp_path, fakes, clock, policy=policy, job={"work_h": 2.0}, cooldown_s=600)
    while run.state.cluster is None:
        if not run.step(2.0):
            clock.sleep(60)
    assert (run.state.cluster.name, run.state.cluster.purchase) == ("run_east-a_on-demand", "on_demand")
    assert clock.time - 1e9 < 3600  # early enough
    clock.sleep(3600)
    fakes.faults.clear()
    stopped: list[str] = []
    while run.state.cluster.purchase == "on_demand":
        if not run.step(0.2, stop=lambda: stopped.append(",".join(sorted(fakes.machines)))):
            clock.sleep(60)
    # The spot machines are there before the others are left, and those have time to save.
    assert stopped == ["run_east-a_on-demand,run_east-b"]
    assert set(fakes.machines) == {"run_east-b"}


def test_a_better_place_that_has_no_machines_changes_nothing(tmp_path: Path) -> None:
    fakes, clock = Fakes({zone: [Blame.POOL] * 99 for zone in PRICES}, on_demand=30.0), Clock()
    run = launcher(tmp_path, fakes, clock, policy={**AT_ONCE, "deadline_h": 2.5}, job={"work_h": 2.0})
    while run.state.cluster is None:
        if not run.step(2.0):
            clock.sleep(60)
    num_tries = len(fakes.started)
    for _ in range(60):
        if not run.step(0.1):
            clock.sleep(60)
    assert set(fakes.machines) == {"run_east-a_on-demand"}
    assert {*fakes.started[num_tries:]} == {*PRICES}


def test_limits(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    limited = launcher(tmp_path, fakes, clock, policy={**AT_ONCE, "max_cost_usd": 30.0})
    limited.up()

    def go_on() -> None:
        while True:
            limited.step(1.0)
            clock.sleep(60)

    with pytest.raises(SpotError, match=r"max_cost_usd: \$2\d.\d\d of \$30.00 are spent"):
        go_on()
    limited.down()
    assert 27.0 < limited.state.usd(clock.time) <= 30.0
    with pytest.raises(SpotError, match="max_cost_usd"):
        launcher(tmp_path, fakes, clock, policy={**AT_ONCE, "max_cost_usd": 30.0}).up()
    clock.time += 36000
    with pytest.raises(SpotError, match=r"deadline_h: 11.\d of 10 h have passed"):
        launcher(tmp_path, fakes, clock, policy={**AT_ONCE, "deadline_h": 10.0}).up()
    assert fakes.machines == {}


def test_without_a_price_max_cost_cannot_be_kept(tmp_path: Path) -> None:
    fakes, clock = Fakes(prices={}), Clock()
    assert launcher(tmp_path / "any", fakes, clock).up()
    with pytest.raises(SpotError, match="east-a: its price is not known"):
        launcher(tmp_path, fakes, clock, policy={**AT_ONCE, "max_cost_usd": 30.0}, give_up_h=0).up()


def test_a_zone_that_gave_notice_is_not_the_next(tmp_path: Path) -> None:
    fakes, clock = Fakes(), Clock()
    run = launcher(tmp_path, fakes, clock)
    run.up()
    notice = Notice("1", "terminate", clock.time + 120)
    place = str(tmp_path / "notices")
    write_record(place, Record("aws", Machine("i-1", "east-b", "p4d"), "node", notice, clock.time))
    write_record(place, Record("aws", Machine("i-0", "east-b", "p4d"), "node", notice, clock.time - 1))  # before it
    advice = Notice("2", "rebalance", None, advisory=True)
    write_record(place, Record("aws", Machine("i-2", "east-b", "p4d"), "node", advice, clock.time))
    run.notices = NewNotices(place)
    run.step(1.0)
    assert [zone for zone, _ in run.state.policy.cooling] == ["east-b"]
    run.step(1.0)
    assert len(run.state.policy.cooling) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cluster": {"name": 3}, "cooldowns": []}', '{"cluster": null}'])
def test_a_torn_state_is_not_taken_for_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "spot.json").write_text(text)
    with pytest.raises(SpotError, match=r"spot.json: not a state of the launcher"):
        launcher(tmp_path, Fakes(), Clock())


def test_settings_that_are_wrong() -> None:
    with pytest.raises(ConfigError, match=r"spot.store: 'bucket' is not valid; expected s3://bucket/key"):
        SpotConfig.parse({"zones": ZONES, "store": "bucket"}, "spot")
    with pytest.raises(ConfigError, match=r"policy.deadline_h: 5 is not valid; job.work_h and job.cold_start_h take 6"):
        SpotConfig.parse({"zones": ZONES, "policy": {"deadline_h": 5}, "job": {"work_h": 6}}, "spot")
    with pytest.raises(ConfigError, match=r"spot: zones.east: 'west-a' is not in this region"):
        SpotConfig.parse({"zones": {"east": ["west-a"]}}, "spot")
    with pytest.raises(ConfigError, match=r"spot.name: 'My Run' is not valid"):
        SpotConfig.parse({"zones": ZONES, "name": "My Run"}, "spot")


@settings(phases=[phase for phase in Phase if phase is not Phase.shrink])  # each example takes long
@given(data=st.data(), limit=st.floats(5, 60))
def test_whatever_happens_no_more_is_spent_than_allowed_and_nothing_is_left(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, limit: float
) -> None:
    path, clock, fakes = tmp_path_factory.mktemp("state"), Clock(), Fakes(on_demand=30.0)
    fakes.takes = lambda most_s: clock.sleep(data.draw(st.floats(0, most_s)))
    policy = {"max_cost_usd": limit, "deadline_h": data.draw(st.none() | st.floats(3, 9)), "patience_h": 0.5}

    def make() -> Launcher:
        return launcher(path, fakes, clock, policy=policy, job={"work_h": 2.0}, cooldown_s=600)

    run, left_h = make(), 2.0
    for _ in range(data.draw(st.integers(1, 60))):
        event = data.draw(st.sampled_from(["work", "work", "die", "lose", "full", "dear", "stuck", "free", "kill"]))
        zone = run.state.cluster.zone if run.state.cluster else "east-a"
        if event == "die":
            fakes.machines.clear()
        elif event == "lose":
            fakes.machines = dict.fromkeys(fakes.machines, Sight(True, 0))
        elif event == "full":
            fakes.faults[zone] = data.draw(st.lists(st.sampled_from([Blame.POOL, Blame.REGION]), max_size=2))
        elif event == "dear":
            fakes.prices[zone] = data.draw(st.floats(8, 30))
        elif event in ("stuck", "free"):
            fakes.stuck = {zone} if event == "stuck" else set()
        elif event == "kill":
            run = make()
        num_started = len(fakes.started)
        was_taken_away = event == "lose" and run.state.cluster is not None and run.state.cluster.purchase == "spot"
        try:
            run.step(left_h, stop=lambda: fakes.takes(STOP_S))
        except SpotError:
            fakes.takes(STOP_S)
            break
        if was_taken_away and fakes.started[num_started:]:
            assert fakes.started[num_started] != zone
        if (cluster := run.state.cluster) and cluster.lost_at is None:
            left_h = max(0.05, left_h - 1 / 30)
            run.has_worked()
        clock.sleep(10)
        assert run.state.usd(clock.time) <= limit
    fakes.stuck = set()
    run.down()
    assert run.state.usd(clock.time) <= limit
    assert fakes.machines == {}


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
        made = replace(fakes)
        for name in ("start", "end", "look", "trouble"):
            setattr(made, name, counted(getattr(made, name)))
        return launcher(path, made, clock, give_up_h=0.1, cooldown_s=3600)

    for at in (kill_at, again_at):
        left[0] = at
        with suppress(Killed, SpotError):
            make().up()
    left[0] = 100_000
    try:
        up = make().up()
        assert set(fakes.machines) == {up.name}
    except SpotError:
        pass
    make().down()
    assert fakes.machines == {}
