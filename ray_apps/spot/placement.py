"""Where machines are asked for next: offers in order of price, without those that failed a short time ago. Pure.

An offer is what one request can ask for. What failed cools down, as widely as the error said, and comes back by itself:
capacity moves within minutes. Knows no cloud and no clock; times are seconds of the caller's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ray_apps.spot.aws_errors import Blame

Purchase = Literal["spot", "on_demand"]

COOLDOWN_S: Mapping[Blame, float] = {
    Blame.POOL: 300.0,
    Blame.ZONE: 300.0,
    Blame.RETRY: 60.0,
    Blame.REGION: 900.0,
    Blame.OFFER: 86400.0,
}
"""How long what failed is let alone. A quota is raised by a person; an instance type comes to a zone within months."""


@dataclass(frozen=True)
class Offer:
    """`usd_per_hour`: of one machine, None if not known. `zone`: an availability zone of `region`."""

    region: str
    zone: str
    instance_type: str
    purchase: Purchase
    usd_per_hour: float | None = None

    def __str__(self) -> str:
        price = "" if self.usd_per_hour is None else f" at ${self.usd_per_hour:.4g}/h"
        return f"{self.purchase} {self.instance_type} in {self.zone}{price}"


@dataclass
class Cooldowns:
    """What is let alone, and until when.

    `seconds`: for each blame. `preempted_s`: for a zone that has taken a spot machine away.
    """

    seconds: Mapping[Blame, float] = field(default_factory=lambda: dict(COOLDOWN_S))
    preempted_s: float = 300.0

    def __post_init__(self) -> None:
        self._until: dict[tuple[str, ...], float] = {}

    def fail(self, offer: Offer, blame: Blame, now: float) -> None:
        """Let alone what `blame` says of `offer`. Only `Blame.STOP` leaves nothing to let alone."""
        if blame is not Blame.STOP:
            self._extend(_scopes(offer)[blame], now + self.seconds[blame])

    def preempt(self, zone: str, now: float) -> None:
        """Note that the zone has taken a spot machine away."""
        self._extend(("preempted", zone), now + self.preempted_s)

    def until(self, offer: Offer) -> float:
        """When the offer's last failure is over; minus infinity if it has had none. Preemptions do not count."""
        return max(self._until.get(scope, -float("inf")) for scope in _scopes(offer).values())

    def blame(self, offer: Offer, now: float) -> Blame | None:
        """What is to blame that the offer is let alone now, the widest if several are; None if nothing is."""
        cooling = [blame for blame, scope in _scopes(offer).items() if self._until.get(scope, now) > now]
        return cooling[-1] if cooling else None

    def is_preempted(self, offer: Offer, now: float) -> bool:
        """Whether the offer's zone has taken a spot machine away a short time ago, and this would be another."""
        return offer.purchase == "spot" and self._until.get(("preempted", offer.zone), now) > now

    def dump(self) -> list[list[str | float]]:
        """What is let alone, as plain data: the words of a scope, then until when."""
        return [[*scope, until] for scope, until in sorted(self._until.items())]

    def load(self, dumped: Iterable[Iterable[str | float]]) -> None:
        """Take over what `dump` gave."""
        for *scope, until in dumped:
            self._extend(tuple(map(str, scope)), float(until))

    def _extend(self, scope: tuple[str, ...], until: float) -> None:
        self._until[scope] = max(until, self._until.get(scope, until))


def _scopes(offer: Offer) -> dict[Blame, tuple[str, ...]]:
    """From the narrowest to the widest."""
    pool = (offer.zone, offer.instance_type, offer.purchase)
    return {
        Blame.POOL: ("pool", *pool),
        Blame.RETRY: ("retry", *pool),
        Blame.OFFER: ("offer", offer.zone, offer.instance_type),
        Blame.ZONE: ("zone", offer.zone),
        Blame.REGION: ("region", offer.region, offer.purchase),
    }


def price(offer: Offer) -> float:
    """Of one machine, in USD per hour; infinite if it is not known."""
    return float("inf") if offer.usd_per_hour is None else offer.usd_per_hour


def rank(
    offers: Iterable[Offer],
    cooldowns: Cooldowns,
    now: float,
    max_usd_per_hour: float | None = None,
) -> list[Offer]:
    """The offers to try, best first: the cheapest, at equal prices in the order given.

    Offers above `max_usd_per_hour`, and those that cool down, are left out. Offers in a zone that has just taken a
    spot machine away come after all others; where there are no others, none is left and the caller waits.
    """
    allowed = [
        offer
        for offer in offers
        if cooldowns.until(offer) <= now
        and (max_usd_per_hour is None or offer.usd_per_hour is None or offer.usd_per_hour <= max_usd_per_hour)
    ]
    ranked = sorted(allowed, key=lambda offer: (cooldowns.is_preempted(offer, now), price(offer)))
    return [] if ranked and cooldowns.is_preempted(ranked[0], now) else ranked
