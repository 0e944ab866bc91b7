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
from typing import Protocol

from data_prep.errors import SpotError
from ray_apps.spot.aws_errors import Blame
from ray_apps.spot.config import SpotConfig
from ray_apps.spot.launch_state import Cluster, LaunchState, read_state, write_state
from ray_apps.spot.placement import COOLDOWN_S, Cooldowns, Offer, Purchase, price
from ray_apps.spot.policy import Observation, decide, forget, remember, warn
from ray_apps.spot.policy import Offer as PolicyOffer
from ray_apps.spot.records import Record

logger = logging.getLogger(__name__)

PRICES_S = 300.0
"""So long prices are taken for those of now."""
SILENT_S = 600.0
"""A region of which nothing is heard for that long, while others answer, has died."""
STOP_S = 300.0
"""How long a run may take to save and end."""
MARGIN_H = (STOP_S + 120.0) / 3600
"""What it takes to end a run and its machines: limits are kept by so much."""
END_AGAIN_S = 60.0
"""Seconds between two tries to end what could not be ended."""
MOST_BROKEN = 5
"""So many clusters in a row that were paid for and did no work: it is not the places."""
WAITING_S = 600.0
"""Seconds between two lines that say that it waits."""

Place = tuple[str, Purchase]


class StartError(Exception):
    """A cluster did not come up. `blame`: what is let alone. `was_paid`: there were machines for a while."""

    def __init__(self, blamed: Blame, text: str, *, was_paid: bool = False) -> None:
        super().__init__(text)
        self.blame = blamed
        self.was_paid = was_paid


class SilentError(Exception):
    """A cluster, or what tells of it, does not answer."""


@dataclass(frozen=True)
class Sight:
    """What there is of a cluster: whether its head, and how many workers that are ready."""

    has_head: bool
    num_workers: int


class Clusters(Protocol):
    """Clusters of one cloud."""

    def offers(self) -> list[Offer]:
        """Where one may be, at the prices of now."""

    def start(self, cluster: Cluster) -> None:
        """Have one; its workers come later. Raises StartError."""

    def look(self, cluster: Cluster) -> Sight:
        """What there is of it. Raises SilentError."""

    def trouble(self, cluster: Cluster) -> StartError | None:
        """Why its workers do not come, as far as its head knows."""

    def end(self, cluster: Cluster) -> int:
        """Terminate all its machines, and return how many there were once none is left. Raises SpotError."""

    def end_all(self, name: str) -> int:
        """The same for all clusters whose names begin with `name` and an underscore, wherever they are."""


def _nothing() -> None:
    pass


@dataclass
class Launcher:
    """`egress`: USD per GB by (from, to). `now`: seconds since 1970. `notices`: those that watchers have recorded."""

    config: SpotConfig
    clusters: Clusters
    egress: dict[tuple[str, str], float] = field(default_factory=dict)
    notices: Callable[[], Iterable[Record]] = lambda: ()
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self._path = Path(self.config.state_path)
        self.state = read_state(self._path)
        waits = {**COOLDOWN_S, Blame.POOL: self.config.cooldown_s, Blame.ZONE: self.config.cooldown_s}
        self._cooldowns = Cooldowns(waits)
        self._cooldowns.load(self.state.cooldowns)
        self._reasons: dict[str, str] = {}  # by zone, why nothing was to be had there last
        self._offers: dict[Place, Offer] = {}
        self._offers_at = self._said_at = -math.inf
        self._waiting_since: float | None = None
        self._silent_since: float | None = None
        self._known_notices: set[str] = set()
        self._num_broken = 0
        self._ended_at = -math.inf

    @property
    def has_clusters(self) -> bool:
        """Whether the state names any, in whatever condition."""
        return bool(self.state.cluster or self.state.starting or self.state.left)

    def begin(self) -> None:
        """Be the launcher of the run in `store`, going on with what the state says of it.

        Raises:
            SpotError: the state is of a run in another store that has machines.
        """
        if self.state.store != self.config.store:
            if self.has_clusters:
                raise SpotError(
                    f"{self._path}: is of the run in {self.state.store}, which has machines; choose another spot.name, "
                    "or end them with `vicuna spot down`"
                )
            self._save(LaunchState(store=self.config.store))

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
        self, left_h: float, at_risk_h: float = 0.0, *, is_online: bool = False, stop: Callable[[], None] = _nothing
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
        if self.now() - self._ended_at >= END_AGAIN_S:
            self._end_left()
        self._read_notices()
        self._look(is_online=is_online)
        self._check_limits(left_h)
        seen = self._remember(left_h, at_risk_h)
        action = decide(self.config.policy, self.state.policy, seen)
        if action.kind == "stop":
            raise SpotError(self._why_stopped(action.reason))
        if action.offer is None:
            self._wait()
            return False
        place = (action.offer.zone, action.offer.purchase)
        if (cluster := self.state.cluster) and (cluster.zone, cluster.purchase) == place:
            self._waiting_since = None
            return False
        if not self._can_pay(self._offers[place]):
            return False
        self._move(self._offers[place], stop)
        self._remember(left_h, at_risk_h)
        return True

    def down(self) -> int:
        """Take down what there is: what the state names, and all of this name, wherever. How many machines.

        Raises:
            SpotError: a machine cannot be terminated; the state still names its cluster.
        """
        self._leave_all()
        num_ended, problems = self._end_left()
        num_ended += self.clusters.end_all(self.config.name)
        if problems:
            raise SpotError("; ".join(problems))
        return num_ended

    def status(self) -> str:
        """One line for people: where, how many workers, what was spent."""
        spent = f"${self.state.usd(self.now()):.2f} spent, {self.state.num_starts} starts"
        if left := self.state.left:
            spent += f"; to be ended: {', '.join(cluster.name for cluster in left)}"
        if not (cluster := self.state.cluster or self.state.starting):
            return f"no cluster; {spent}"
        try:
            workers = f"{self.clusters.look(cluster).num_workers} of {self.config.num_workers} workers"
        except SilentError as error:
            workers = f"does not answer ({error})"
        kind = "up" if self.state.cluster else "starting, or its launcher was killed"
        return f"{cluster.name} in {cluster.zone}: {kind}, {workers}, ${cluster.usd_per_hour:.2f}/h; {spent}"

    def has_worked(self) -> None:
        """Take note that the cluster is of use."""
        self._num_broken = 0

    def forget(self) -> str:
        """Begin anew, once all is done and down; what it took, in words."""
        state = self.state
        took = f"{state.at_h(self.now()):.2f} h, ${state.usd(self.now()):.2f}, {state.num_starts} starts"
        self._save(LaunchState())
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

    def update(self, **values: object) -> None:
        """Save other values of the state."""
        self._save(replace(self.state, **values))  # type: ignore[arg-type]

    def _look(self, *, is_online: bool) -> None:
        """Whether the cluster is still there. What a killed launcher was starting is given up."""
        if self.state.starting is not None:
            self._give_up_starting()
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
            self.update(cluster=replace(cluster, lost_at=None))
        elif cluster.lost_at is None:
            logger.warning("%s: %d of %d workers", cluster.name, sight.num_workers, self.config.num_workers)
            self.update(cluster=replace(cluster, lost_at=self.now()))
        elif failed := self._failed(cluster, cluster.lost_at, sight.num_workers):
            logger.warning("%s: %s", cluster.name, failed)
            self._blame(cluster, failed)
            self._leave()

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
        self._blame(cluster, StartError(Blame.ZONE, reason))
        self._silent_since = None
        self.update(policy=forget(self.state.policy))
        self._leave()

    def _read_notices(self) -> None:
        if (cluster := self.state.cluster) is None:
            return
        try:
            records = list(self.notices())
        except (OSError, ValueError) as error:  # pyarrow raises either
            logger.warning("notices cannot be read: %s", error)
            return
        for record in records:
            if record.file_name in self._known_notices or record.seen_at < cluster.started_at:
                continue
            self._known_notices.add(record.file_name)
            if record.notice.advisory or record.machine.zone not in ("", cluster.zone):
                continue
            logger.warning("%s: notice for %s (%s)", cluster.zone, record.machine.instance or record.node, record.cloud)
            at_h = self.state.at_h(self.now())
            self.update(policy=warn(self.state.policy, cluster.zone, at_h, self.config.policy))

    def _check_limits(self, left_h: float) -> None:
        """Raise SpotError if one is reached, or would be before everything was ended."""
        deadline_h, at_h = self.config.policy.deadline_h, self.state.at_h(self.now())
        ends_in_time = deadline_h is not None and at_h + left_h <= deadline_h
        if deadline_h is not None and at_h + (0.0 if ends_in_time else MARGIN_H) >= deadline_h:
            raise SpotError(
                f"spot.policy.deadline_h: {at_h:.1f} of {deadline_h:g} h have passed; with a later one the run goes on"
            )
        limit, soon = self.config.policy.max_cost_usd, self.now() + MARGIN_H * 3600
        if limit is not None and self.state.usd(soon) > limit:
            raise SpotError(self._why_stopped("max_cost_usd"))

    def _can_pay(self, offer: Offer) -> bool:
        """Whether there is enough for a start there, beside what runs meanwhile; raises SpotError if nothing does."""
        limit, start_h = self.config.policy.max_cost_usd, self.config.job.cold_start_h + MARGIN_H
        ready = self.now() + start_h * 3600
        if limit is None or self.state.usd(ready) + start_h * self._paid(offer) + self._move_usd(offer) <= limit:
            return True
        if self.state.cluster is None:
            raise SpotError(self._why_stopped("max_cost_usd"))
        return False

    def _why_stopped(self, reason: str) -> str:
        spent, limit = self.state.usd(self.now()), self.config.policy.max_cost_usd
        if reason != "max_cost_usd" or limit is None:
            return reason
        return f"spot.policy.max_cost_usd: ${spent:.2f} of ${limit:.2f} are spent; with more the run goes on"

    def _remember(self, left_h: float, at_risk_h: float) -> Observation:
        """What is the case, once the policy's state has it."""
        seen = self._observe(left_h, at_risk_h)
        self.update(policy=remember(self.state.policy, seen, self.config.policy))
        return seen

    def _observe(self, left_h: float, at_risk_h: float) -> Observation:
        cluster = self.state.cluster
        running = (cluster.zone, cluster.purchase) if cluster and cluster.lost_at is None else None
        return Observation(
            at_h=self.state.at_h(self.now()),
            work_h=self.config.job.work_h,
            work_left_h=left_h,
            spent_usd=self.state.usd(self.now()) + MARGIN_H * sum(left.usd_per_hour for left in self.state.left),
            period_h=MARGIN_H,
            restart_h=self.config.job.cold_start_h,
            offers=tuple(self._seen_offers(running)),
            running=running,
            at_risk_h=at_risk_h,
        )

    def _ask_prices(self) -> None:
        if self.now() - self._offers_at < PRICES_S:
            return
        before, self._offers = self._offers, {(o.zone, o.purchase): o for o in self.clusters.offers()}
        self._offers_at = self.now()
        if (cluster := self.state.cluster) is None:
            return
        place = (cluster.zone, cluster.purchase)
        offer = self._offers.get(place)
        if offer is not None and offer.usd_per_hour is not None:
            self.update(cluster=cluster.repriced(self._paid(offer), self.now()))
        elif place in before:  # what runs is not left for want of its price
            self._offers[place] = before[place]

    def _seen_offers(self, running: Place | None) -> Iterable[PolicyOffer]:
        """As the policy sees them. Where a quota, the type or the whole place is to blame, there is no offer at all."""
        names = {cluster.name for cluster in self.state.left}
        for place, offer in self._offers.items():
            if self._name(offer) in names:  # the next of that name would be ended in its stead
                continue
            blamed = None if place == running else self._cooldowns.blame(offer, self.now())
            if blamed in (Blame.OFFER, Blame.ZONE, Blame.REGION):
                continue
            is_vague = offer.usd_per_hour is None and self.config.policy.max_cost_usd is not None
            if is_vague and place != running:
                self._reasons[offer.zone] = "its price is not known, and so max_cost_usd could not be kept"
                continue
            yield PolicyOffer(*place, self._usd_per_hour(offer), self._move_usd(offer), blamed is None)

    def _usd_per_hour(self, offer: Offer) -> float:
        """For comparison: of all machines, and of saves that go to another region."""
        job = self.config.job
        saves = job.egress_usd(self.egress, offer.region, self.config.store_region or offer.region)
        return self.config.num_workers * price(offer) + self.config.head_usd_per_hour + saves / job.checkpoint_every_h

    def _paid(self, offer: Offer) -> float:
        """The same, as it is counted: a price that is not known counts for nothing."""
        return self._usd_per_hour(replace(offer, usd_per_hour=offer.usd_per_hour or 0.0))

    def _move_usd(self, offer: Offer) -> float:
        return self.config.job.egress_usd(self.egress, self.config.store_region or offer.region, offer.region)

    def _wait(self) -> None:
        """Say what it waits for, now and then; give up after `give_up_h`, or if waiting is of no use."""
        now = self.now()
        self._waiting_since = now if self._waiting_since is None else self._waiting_since
        reasons = "; ".join(f"{zone}: {reason}" for zone, reason in sorted(self._reasons.items()))
        may_buy = self.config.policy.on_demand and self.config.policy.deadline_h is not None
        wanted = [offer for offer in self._offers.values() if offer.purchase == "spot" or may_buy]
        blames = {self._cooldowns.blame(offer, now) for offer in wanted}
        gives_up = self.config.give_up_h is not None and now - self._waiting_since >= self.config.give_up_h * 3600
        if self.state.cluster is None and (gives_up or blames <= {Blame.REGION, Blame.OFFER}):
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
            self._blame_offer(offer, failed)
            self._num_broken += failed.was_paid
            if self.state.cluster is None and (failed.blame is Blame.STOP or self._num_broken >= MOST_BROKEN):
                raise SpotError(f"no machines: {offer.zone}: {failed}") from None
            return
        self._reasons.clear()
        self._num_broken += 1
        if self._num_broken > MOST_BROKEN:
            self._give_up_starting()
            raise SpotError(f"{MOST_BROKEN} clusters in a row did no work, the last in {offer.zone}")
        self._waiting_since = None
        if self.state.cluster is not None:
            stop()
            self._leave()
        self._save(self.state.arrived())

    def _start(self, offer: Offer) -> None:
        now, usd, moved = self.now(), self._paid(offer), self._move_usd(offer)
        cluster = Cluster(self._name(offer), offer.region, offer.zone, offer.purchase, usd, now, now, moved)
        self._save(self.state.asked_for(cluster))  # before anything exists
        try:
            self.clusters.start(cluster)
            self._wait_for_workers(cluster)
        except BaseException:
            self._give_up_starting()
            raise

    def _name(self, offer: Offer) -> str:
        return f"{self.config.name}_{offer.zone}{'' if offer.purchase == 'spot' else '_on-demand'}"

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
            self._check_limits(self.config.job.work_h)
            if failed := self._failed(cluster, since, sight.num_workers):
                raise failed
            self.sleep(self.config.poll_s)

    def _blame(self, cluster: Cluster, failed: StartError) -> None:
        if offer := self._offers.get((cluster.zone, cluster.purchase)):
            self._blame_offer(offer, failed)

    def _blame_offer(self, offer: Offer, failed: StartError) -> None:
        """What is wrong everywhere is wrong in the region, where a run goes on elsewhere meanwhile."""
        self._reasons[offer.zone] = str(failed)
        self._cooldowns.fail(offer, Blame.REGION if failed.blame is Blame.STOP else failed.blame, self.now())
        self._save(self.state)

    def _leave(self) -> None:
        """End the cluster, now or, if that fails, at later steps."""
        self._save(self.state.leaving())
        self._end_left()

    def _give_up_starting(self) -> None:
        self._save(self.state.given_up())
        self._end_left()

    def _leave_all(self) -> None:
        if self.state.starting is not None:
            self._save(self.state.given_up())
        if self.state.cluster is not None:
            self._save(replace(self.state.leaving(), policy=forget(self.state.policy)))

    def _end_left(self) -> tuple[int, list[str]]:
        """Of the clusters that are to be ended: how many machines were, and what went wrong."""
        num_ended, problems, self._ended_at = 0, [], self.now()
        for cluster in self.state.left:
            try:
                num_ended += self.clusters.end(cluster)
            except SpotError as error:
                logger.warning("%s is to be ended, and is not yet: %s", cluster.name, error)
                problems.append(str(error))
            else:
                self._save(self.state.ended(cluster, self.now()))
        return num_ended, problems

    def _save(self, state: LaunchState) -> None:
        dumped = tuple(tuple(entry) for entry in self._cooldowns.dump())
        state = replace(state, cooldowns=dumped)
        if state != self.state:
            write_state(self._path, state)
        self.state = state
