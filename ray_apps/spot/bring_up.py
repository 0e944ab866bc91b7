"""A cluster where it is cheapest; brought up elsewhere when a place fails, taken down whole. Knows no Ray, no cloud."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from data_prep.errors import SpotError
from ray_apps.spot.aws_errors import Blame
from ray_apps.spot.config import SpotConfig
from ray_apps.spot.launch_state import Cluster, LaunchState, read_state, write_state
from ray_apps.spot.placement import COOLDOWN_S, Cooldowns, Offer, price, rank
from ray_apps.spot.pricing import egress_usd

logger = logging.getLogger(__name__)

POLL_S = 10.0


class StartError(Exception):
    """A cluster did not come up. `blame`: what is let alone."""

    def __init__(self, blamed: Blame, text: str) -> None:
        super().__init__(text)
        self.blame = blamed


class Clusters(Protocol):
    """Clusters of one cloud, by name."""

    def offers(self) -> list[Offer]:
        """Where one may be, at the prices of now."""

    def start(self, name: str, offer: Offer) -> None:
        """Have one there; its workers come later. Raises StartError."""

    def num_workers(self, name: str, region: str, zone: str) -> int:
        """Of its workers, those that are ready."""

    def end(self, name: str, region: str, zone: str) -> int:
        """Terminate all its machines, and return how many there were once none is left. Raises SpotError."""


@dataclass
class Launcher:
    """`egress`: USD per GB by (from, to). `now`: seconds since 1970."""

    config: SpotConfig
    clusters: Clusters
    egress: dict[tuple[str, str], float] = field(default_factory=dict)
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self._path = Path(self.config.state)
        self.state = read_state(self._path)
        waits = {**COOLDOWN_S, Blame.POOL: self.config.cooldown_s, Blame.ZONE: self.config.cooldown_s}
        self._cooldowns = Cooldowns(waits, preempted_s=self.config.cooldown_s)
        self._cooldowns.load(self.state.cooldowns)

    def up(self) -> Cluster:
        """A cluster with all its workers: the one that is up, or a new one in the best place that has them.

        What an earlier, killed launcher has left is taken down first.

        Raises:
            SpotError: no place has them, a limit is reached, or an error that is the same everywhere. Nothing is left.
        """
        if (cluster := self.state.cluster) and cluster.is_up:
            if self._num_workers(cluster) >= self.config.num_workers:
                return cluster
            logger.warning("%s has lost workers", cluster.name)
            self._cooldowns.preempt(cluster.zone, self.now())
        self.down()
        reasons = []
        for offer in self._ranked():
            if self._cooldowns.until(offer) > self.now():
                continue
            self.check_limits()
            try:
                return self._start(offer)
            except StartError as failed:
                logger.warning("%s: %s", offer, failed)
                reasons.append(f"{offer.zone}: {failed}")
                self._cooldowns.fail(offer, failed.blame, self.now())
                self._save(self.state)
                if failed.blame is Blame.STOP:
                    break
        raise SpotError(
            "no machines: " + ("; ".join(reasons) or "every zone failed a short time ago, or costs too much")
        )

    def down(self) -> int:
        """Take down what there is: the cluster of the state, and any of this name in any zone. How many machines.

        Raises:
            SpotError: a machine cannot be terminated; the state still names the cluster.
        """
        places = {self._name(zone): (region, zone) for region, zones in self.config.zones.items() for zone in zones}
        if cluster := self.state.cluster:
            places[cluster.name] = (cluster.region, cluster.zone)
        num_ended = sum(self.clusters.end(name, *place) for name, place in places.items())
        if self.state.cluster:
            self._save(self.state.ended(self.now()))
        return num_ended

    def status(self) -> str:
        """One line for people: where, how many workers, what was spent."""
        spent = f"${self.state.usd(self.now()):.2f} spent, {self.state.num_starts} starts"
        if not (cluster := self.state.cluster):
            return f"no cluster; {spent}"
        kind = "up" if cluster.is_up else "starting, or its launcher was killed"
        workers = f"{self._num_workers(cluster)} of {self.config.num_workers} workers"
        return f"{cluster.name} in {cluster.zone}: {kind}, {workers}, ${cluster.usd_per_hour:.2f}/h; {spent}"

    def check_limits(self) -> None:
        """Raise SpotError once as much was spent, or as much time has passed, as the settings allow."""
        spent, limit = self.state.usd(self.now()), self.config.max_cost_usd
        if limit is not None and spent >= limit:
            raise SpotError(f"max_cost_usd: ${spent:.2f} of ${limit:.2f} are spent")
        if self.config.deadline_h is not None and self.state.first_start is not None:
            hours = (self.now() - self.state.first_start) / 3600
            if hours >= self.config.deadline_h:
                raise SpotError(f"deadline_h: {hours:.1f} of {self.config.deadline_h:.1f} h have passed")

    def _start(self, offer: Offer) -> Cluster:
        usd = self.config.num_workers * (offer.usd_per_hour or 0.0) + self.config.head_usd_per_hour
        name = self._name(offer.zone)
        cluster = Cluster(name, offer.region, offer.zone, offer.purchase, usd, started_at=self.now())
        self._save(self.state.starting(cluster))  # before anything exists
        try:
            self.clusters.start(name, offer)
            self._wait_for_workers(cluster)
        except BaseException:
            self.down()
            raise
        cluster = replace(cluster, is_up=True)
        self._save(replace(self.state, cluster=cluster))
        return cluster

    def _wait_for_workers(self, cluster: Cluster) -> None:
        deadline = self.now() + self.config.start_timeout_s
        while (num := self._num_workers(cluster)) < self.config.num_workers:
            self.check_limits()
            if self.now() >= deadline:
                text = f"{num} of {self.config.num_workers} workers within {self.config.start_timeout_s:.0f} s"
                raise StartError(Blame.POOL, text)
            self.sleep(POLL_S)

    def _ranked(self) -> list[Offer]:
        return rank(self.clusters.offers(), self._cooldowns, self.now(), cost=self._cost)

    def _cost(self, offer: Offer) -> float:
        """USD for the rest of the work there: machines from their start on, and the move."""
        config = self.config
        machines = config.num_workers * price(offer) + config.head_usd_per_hour
        moved, source = config.checkpoint_gb * 1e9, config.checkpoint_region or offer.region
        move = egress_usd(moved, source, offer.region, self.egress, config.egress_usd_per_gb)
        return machines * (config.work_h + config.cold_start_h) + move

    def _num_workers(self, cluster: Cluster) -> int:
        return self.clusters.num_workers(cluster.name, cluster.region, cluster.zone)

    def _name(self, zone: str) -> str:
        return f"{self.config.name}-{zone}"

    def _save(self, state: LaunchState) -> None:
        dumped = tuple(tuple(entry) for entry in self._cooldowns.dump())
        self.state = replace(state, cooldowns=dumped)
        write_state(self._path, self.state)
