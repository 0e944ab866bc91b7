"""Where a cluster may be, as the policy sees it: what each place costs, and which failed a short time ago. Pure."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from ray_apps.spot.aws_errors import Blame
from ray_apps.spot.clusters import StartError
from ray_apps.spot.config import SpotConfig
from ray_apps.spot.placement import COOLDOWN_S, Cooldowns, Offer, Purchase, price
from ray_apps.spot.policy import Offer as PolicyOffer

Place = tuple[str, Purchase]
"""A zone, and what machines are bought as there."""


class Market:
    """`egress`: USD per GB by (from, to). `cooling`: as `cooldowns` gave it. Times are seconds of the caller's."""

    def __init__(
        self, config: SpotConfig, egress: Mapping[tuple[str, str], float], cooling: Iterable[Iterable[str | float]]
    ) -> None:
        self._config = config
        self._egress = egress
        waits = {**COOLDOWN_S, Blame.POOL: config.cooldown_s, Blame.ZONE: config.cooldown_s}
        self._cooldowns = Cooldowns(waits)
        self._cooldowns.load(cooling)
        self._offers: dict[Place, Offer] = {}
        self._reasons: dict[str, str] = {}  # by zone, why nothing was to be had there last

    def __getitem__(self, place: Place) -> Offer:
        return self._offers[place]

    @property
    def cooldowns(self) -> tuple[tuple[str | float, ...], ...]:
        """What is let alone, as plain data."""
        return tuple(tuple(entry) for entry in self._cooldowns.dump())

    @property
    def reasons(self) -> str:
        """Why nothing was to be had, zone by zone."""
        return "; ".join(f"{zone}: {reason}" for zone, reason in sorted(self._reasons.items()))

    def refresh(self, offers: Iterable[Offer], running: Place | None) -> float | None:
        """Take over the offers of now; what is paid where something runs, if its price is told.

        What runs is not left for want of its price: then its last one stays.
        """
        before, self._offers = self._offers, {(offer.zone, offer.purchase): offer for offer in offers}
        if running is None:
            return None
        offer = self._offers.get(running)
        if offer is not None and offer.usd_per_hour is not None:
            return self.paid(offer)
        if running in before:
            self._offers[running] = before[running]
        return None

    def seen(self, now: float, running: Place | None, ending: Collection[Place]) -> Iterator[PolicyOffer]:
        """As the policy sees it. Where a quota, the type or the whole place is to blame, there is no offer at all.

        Neither is there one in the places of `ending`: the next cluster of that name would be ended in its stead.
        """
        for place, offer in self._offers.items():
            blamed = None if place == running else self._cooldowns.blame(offer, now)
            if place in ending or blamed in (Blame.OFFER, Blame.ZONE, Blame.REGION):
                continue
            is_vague = offer.usd_per_hour is None and self._config.policy.max_cost_usd is not None
            if is_vague and place != running:
                self._reasons[offer.zone] = "its price is not known, and so max_cost_usd could not be kept"
                continue
            yield PolicyOffer(*place, self._usd_per_hour(offer), self.move_usd(offer), blamed is None)

    def blame(self, place: Place, failed: StartError, now: float) -> None:
        """Let alone what failed. What is wrong everywhere is wrong in the region: elsewhere a run may be at work."""
        if offer := self._offers.get(place):
            self._reasons[offer.zone] = str(failed)
            self._cooldowns.fail(offer, Blame.REGION if failed.blame is Blame.STOP else failed.blame, now)

    def forgive(self) -> None:
        """Forget why nothing was to be had: there are machines."""
        self._reasons.clear()

    def is_hopeless(self, now: float) -> bool:
        """Whether waiting is of no use: wherever the policy may buy, a quota or the type is to blame."""
        may_buy = self._config.policy.on_demand and self._config.policy.deadline_h is not None
        wanted = [offer for offer in self._offers.values() if offer.purchase == "spot" or may_buy]
        return {self._cooldowns.blame(offer, now) for offer in wanted} <= {Blame.REGION, Blame.OFFER}

    def paid(self, offer: Offer) -> float:
        """USD per hour of a cluster, as it is counted: a price that is not known counts for nothing."""
        return self._usd_per_hour(replace(offer, usd_per_hour=offer.usd_per_hour or 0.0))

    def move_usd(self, offer: Offer) -> float:
        """USD for bringing a checkpoint there from the store."""
        return self._config.job.egress_usd(self._egress, self._store_region(offer), offer.region)

    def _usd_per_hour(self, offer: Offer) -> float:
        """For comparison: of all machines, and of saves that go to another region."""
        config = self._config
        saves = config.job.egress_usd(self._egress, offer.region, self._store_region(offer))
        return config.num_workers * price(offer) + config.head_usd_per_hour + saves / config.job.checkpoint_every_h

    def _store_region(self, offer: Offer) -> str:
        return self._config.store_region or offer.region
