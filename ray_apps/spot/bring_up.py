"""A cluster where the policy wants one; elsewhere when a place fails; taken down whole. Knows no Ray, no cloud.

Each step looks at what there is, asks `policy.decide`, and does what it says. A place that fails is let alone for a
while; a better one is brought up before the old one is left.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.errors import SpotError
from ray_apps.spot.aws_errors import Blame
from ray_apps.spot.clusters import Clusters, Sight, SilentError, StartError
from ray_apps.spot.config import SpotConfig
from ray_apps.spot.holdings import Holdings
from ray_apps.spot.launch_state import Cluster, LaunchState
from ray_apps.spot.limits import MARGIN_H, can_pay, check_limits, too_dear
from ray_apps.spot.market import Market, Place
from ray_apps.spot.placement import Offer
from ray_apps.spot.policy import Observation, decide, forget, remember, warn
from ray_apps.spot.records import Record

logger = logging.getLogger(__name__)

PRICES_S = 300.0
"""So long prices are taken for those of now."""
SILENT_S = 600.0
"""A region of which nothing is heard for that long, while others answer, has died."""
MOST_BROKEN = 5
"""So many clusters in a row that were paid for and did no work: it is not the places."""
WAITING_S = 600.0
"""Seconds between two lines that say that it waits."""


@dataclass
class Launcher:
    """`egress`: USD per GB by (from, to). `now`: seconds since 1970.

    `notices`: those of machines' ends that watchers have recorded since a time, and that it has not given before.
    """

    config: SpotConfig
    clusters: Clusters
    egress: dict[tuple[str, str], float] = field(default_factory=dict)
    notices: Callable[[float], Iterable[Record]] = lambda since: ()
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self.holdings = Holdings(Path(self.config.state_path), self.clusters, lambda: self.now())
        self._market = Market(self.config, self.egress, self.state.cooldowns)
        self._offers_at = self._said_at = -math.inf
        self._waiting_since: float | None = None
        self._silent_since: float | None = None
        self._num_broken = 0

    @property
    def state(self) -> LaunchState:
        """What it knows, as it is in the file."""
        return self.holdings.state

    def up(self) -> Cluster:
        """A cluster with all its workers: the one that is up, or a new one where the policy wants it.

        Raises:
            SpotError: a limit is reached, an error is the same everywhere, or there are no machines for `give_up_h`.
                Then everything is taken down.
        """
        try:
            while True:
                has_acted = self.step(self.config.job.work_h)
                if (cluster := self.state.cluster) and cluster.lost_at is None:
                    return cluster
                if not has_acted:
                    self.sleep(self.config.poll_s)
        except BaseException:
            self.down()
            raise

    def step(
        self, left_h: float, at_risk_h: float = 0.0, *, is_online: bool = False, stop: Callable[[], None] = lambda: None
    ) -> bool:
        """Look, ask the policy, and act once.

        Args:
            left_h: hours of work that are left.
            at_risk_h: hours of work that are lost if machines are gone without notice.
            is_online: whether something else than the cluster has just answered, so that silence is the cluster's.
            stop: called before machines are left that may be at work.

        Returns:
            Whether anything was done, so that there is something new to look at.

        Raises:
            SpotError: a limit is reached, an error is the same everywhere, or there are no machines for `give_up_h`.
        """
        self._ask_prices()
        self.holdings.end_later()
        self._read_notices()
        self._look(is_online=is_online)
        check_limits(self.config.policy, self.state, self.now(), left_h)
        seen = self._remember(left_h, at_risk_h)
        action = decide(self.config.policy, self.state.policy, seen)
        if action.kind == "stop":
            raise too_dear(self.config.policy, self.state, self.now())
        if action.offer is None:
            self._wait()
            return False
        place = (action.offer.zone, action.offer.purchase)
        if (cluster := self.state.cluster) and cluster.place == place:
            self._waiting_since = None
            return False
        if not self._can_pay(self._market[place]):
            if self.state.cluster is None:
                raise too_dear(self.config.policy, self.state, self.now())
            return False
        self._move(self._market[place], stop)
        self._remember(left_h, at_risk_h)
        return True

    def down(self) -> int:
        """Take down what there is: what the state names, and all of this name, wherever. How many machines.

        Raises:
            SpotError: a machine cannot be terminated; the state still names its cluster.
        """
        return self.holdings.end_all(self.config.name)

    def status(self) -> str:
        """One line for people: where, how many workers, what was spent."""
        cluster, workers = self.state.cluster or self.state.starting, ""
        if cluster is not None:
            try:
                workers = f"{self.clusters.look(cluster).num_workers} of {self.config.num_workers} workers"
            except SilentError as error:
                workers = f"does not answer ({error})"
        return self.state.describe(workers, self.now())

    def has_worked(self) -> None:
        """Take note that the cluster is of use."""
        self._num_broken = 0

    def forget(self) -> str:
        """Begin anew, once all is done and down; what it took, in words."""
        state = self.state
        took = f"{state.at_h(self.now()):.2f} h, ${state.usd(self.now()):.2f}, {state.num_starts} starts"
        self.holdings.save(LaunchState())
        return took

    def silent(self, error: SilentError, *, is_online: bool) -> None:
        """Take note that the cluster does not answer; after `SILENT_S` it counts as dead."""
        if not is_online:
            return
        if self._silent_since is None:
            logger.warning("no answer: %s", error)
            self._silent_since = self.now()
        if self.now() - self._silent_since > SILENT_S:
            self._region_died(str(error))

    def heard(self) -> None:
        """Take note that it answers."""
        self._silent_since = None

    def _look(self, *, is_online: bool) -> None:
        """Whether the cluster is still there. What a killed launcher was starting is given up."""
        if self.state.starting is not None:
            self.holdings.give_up()
        if (cluster := self.state.cluster) is None:
            return
        try:
            sight = self.clusters.look(cluster)
        except SilentError as error:
            self.silent(error, is_online=is_online)
            return
        if not sight.has_head:
            self._region_died("its head is gone")
        elif sight.num_workers >= self.config.least_workers:
            self.holdings.update(cluster=replace(cluster, lost_at=None))
        elif cluster.lost_at is None:
            logger.warning("%s: %d of %d workers", cluster.name, sight.num_workers, self.config.num_workers)
            self.holdings.update(cluster=replace(cluster, lost_at=self.now()))
        elif failed := self._failed(cluster, cluster.lost_at, sight.num_workers):
            logger.warning("%s: %s", cluster.name, failed)
            self._blame(cluster.place, failed)
            self.holdings.leave()

    def _failed(self, cluster: Cluster, since: float, num_workers: int) -> StartError | None:
        """Why there is no use in waiting for workers; None if there is."""
        if trouble := self.clusters.trouble(cluster):
            return trouble
        if self.now() - since < self.config.start_timeout_s:
            return None
        text = f"{num_workers} of {self.config.num_workers} workers within {self.config.start_timeout_s:.0f} s"
        return StartError(Blame.POOL, text, was_paid=True)

    def _region_died(self, reason: str) -> None:
        assert self.state.cluster is not None
        cluster = self.state.cluster
        logger.warning("%s in %s has died: %s", cluster.name, cluster.zone, reason)
        self._blame(cluster.place, StartError(Blame.ZONE, reason))
        self._silent_since = None
        self.holdings.update(policy=forget(self.state.policy))
        self.holdings.leave()

    def _read_notices(self) -> None:
        if (cluster := self.state.cluster) is None:
            return
        for record in self.notices(cluster.started_at):
            if record.machine.zone in ("", cluster.zone):
                logger.warning("%s: %s is taken away (%s)", cluster.zone, record.name, record.cloud)
                at_h = self.state.at_h(self.now())
                self.holdings.update(policy=warn(self.state.policy, cluster.zone, at_h, self.config.policy))

    def _can_pay(self, offer: Offer) -> bool:
        """Whether there is enough for a start there, beside what runs meanwhile."""
        usd_per_hour, usd = self._market.paid(offer), self._market.move_usd(offer)
        hours = self.config.job.cold_start_h
        policy = self.config.policy
        return can_pay(policy, self.state, self.now(), usd_per_hour=usd_per_hour, usd=usd, hours=hours)

    def _remember(self, left_h: float, at_risk_h: float) -> Observation:
        """What is the case, once the policy's state has it."""
        seen = self._observe(left_h, at_risk_h)
        self.holdings.update(policy=remember(self.state.policy, seen, self.config.policy))
        return seen

    def _observe(self, left_h: float, at_risk_h: float) -> Observation:
        cluster = self.state.cluster
        running = cluster.place if cluster and cluster.lost_at is None else None
        ending = {left.place for left in self.state.left}
        return Observation(
            at_h=self.state.at_h(self.now()),
            work_h=self.config.job.work_h,
            work_left_h=left_h,
            spent_usd=self.state.usd(self.now()) + MARGIN_H * sum(left.usd_per_hour for left in self.state.left),
            period_h=MARGIN_H,
            restart_h=self.config.job.cold_start_h,
            offers=tuple(self._market.seen(self.now(), running, ending)),
            running=running,
            at_risk_h=at_risk_h,
        )

    def _ask_prices(self) -> None:
        if self.now() - self._offers_at < PRICES_S:
            return
        cluster = self.state.cluster
        usd_per_hour = self._market.refresh(self.clusters.offers(), cluster.place if cluster else None)
        self._offers_at = self.now()
        if cluster is not None and usd_per_hour is not None:
            self.holdings.update(cluster=cluster.repriced(usd_per_hour, self.now()))

    def _wait(self) -> None:
        """Say what it waits for, now and then; give up after `give_up_h`, or if waiting is of no use."""
        now = self.now()
        self._waiting_since = now if self._waiting_since is None else self._waiting_since
        reasons = self._market.reasons
        gives_up = self.config.give_up_h is not None and now - self._waiting_since >= self.config.give_up_h * 3600
        if self.state.cluster is None and (gives_up or self._market.is_hopeless(now)):
            raise SpotError(f"no machines: {reasons or 'no zone has a price that the policy takes'}")
        if now - self._said_at >= WAITING_S:
            logger.info("waiting for spot machines at a good price. %s", reasons)
            self._said_at = now

    def _move(self, offer: Offer, stop: Callable[[], None]) -> None:
        """A cluster there, and then none where it was. Nothing changes where it is if there are no machines."""
        logger.info("asking for %d × %s", self.config.num_workers, offer)
        try:
            self._start(offer)
        except StartError as failed:
            logger.warning("%s: %s", offer, failed)
            self._blame((offer.zone, offer.purchase), failed)
            self._num_broken += failed.was_paid
            if self.state.cluster is None and (failed.blame is Blame.STOP or self._num_broken >= MOST_BROKEN):
                raise SpotError(f"no machines: {offer.zone}: {failed}") from None
            return
        self._market.forgive()
        self._num_broken += 1
        if self._num_broken > MOST_BROKEN:
            self.holdings.give_up()
            raise SpotError(f"{MOST_BROKEN} clusters in a row did no work, the last in {offer.zone}")
        self._waiting_since = None
        if self.state.cluster is not None:
            stop()
            self.holdings.leave()
        self.holdings.save(self.state.arrived())

    def _start(self, offer: Offer) -> None:
        now, usd, moved = self.now(), self._market.paid(offer), self._market.move_usd(offer)
        name = f"{self.config.name}_{offer.zone}{'' if offer.purchase == 'spot' else '_on-demand'}"
        cluster = Cluster(name, offer.region, offer.zone, offer.purchase, usd, now, now, moved)
        self.holdings.save(self.state.asked_for(cluster))  # before anything exists
        try:
            self.clusters.start(cluster)
            self._wait_for_workers(cluster)
        except BaseException:
            self.holdings.give_up()
            raise

    def _wait_for_workers(self, cluster: Cluster) -> None:
        since = self.now()
        while True:
            try:
                sight = self.clusters.look(cluster)
            except SilentError as error:
                logger.warning("no answer: %s", error)
                sight = Sight(has_head=True, num_workers=0)
            if sight.num_workers >= self.config.num_workers:
                return
            check_limits(self.config.policy, self.state, self.now(), self.config.job.work_h)
            if failed := self._failed(cluster, since, sight.num_workers):
                raise failed
            self.sleep(self.config.poll_s)

    def _blame(self, place: Place, failed: StartError) -> None:
        self._market.blame(place, failed, self.now())
        self.holdings.update(cooldowns=self._market.cooldowns)
