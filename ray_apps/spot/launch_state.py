"""What the launcher knows, in a file that is written before each thing it does: a kill at any point loses nothing."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.errors import SpotError
from data_prep.storage import write_text


@dataclass(frozen=True)
class Cluster:
    """One that was asked for. `usd_per_hour`: of all its machines. `started_at`: seconds since 1970."""

    name: str
    region: str
    zone: str
    purchase: str
    usd_per_hour: float
    started_at: float
    is_up: bool = False

    def usd(self, now: float) -> float:
        """What it has cost so far."""
        return max(0.0, now - self.started_at) / 3600 * self.usd_per_hour


@dataclass(frozen=True)
class LaunchState:
    """`first_start`: seconds since 1970. `spent_usd`: by clusters that have ended. `num_starts`: of clusters so far."""

    cluster: Cluster | None = None
    first_start: float | None = None
    spent_usd: float = 0.0
    num_starts: int = 0
    cooldowns: tuple[tuple[str | float, ...], ...] = ()

    def usd(self, now: float) -> float:
        """What was spent so far, at the prices at which clusters were started."""
        return self.spent_usd + (self.cluster.usd(now) if self.cluster else 0.0)

    def starting(self, cluster: Cluster) -> "LaunchState":
        """With a cluster that is about to be asked for."""
        first = cluster.started_at if self.first_start is None else self.first_start
        return replace(self, cluster=cluster, first_start=first, num_starts=self.num_starts + 1)

    def ended(self, now: float) -> "LaunchState":
        """Without its cluster, of which nothing is left."""
        return replace(self, cluster=None, spent_usd=self.usd(now))


def read_state(path: Path) -> LaunchState:
    """The state; a new one if there is no file.

    Raises:
        SpotError: the file is not one of these.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        cluster = Cluster(**values.pop("cluster")) if values["cluster"] else values.pop("cluster")
        cooldowns = tuple(tuple(entry) for entry in values.pop("cooldowns"))
        return LaunchState(cluster=cluster, cooldowns=cooldowns, **values)
    except FileNotFoundError:
        return LaunchState()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpotError(f"{path}: not a state of the launcher: {error}; machines may run that it named") from None


def write_state(path: Path, state: LaunchState) -> None:
    """Write it so that a kill leaves the old one or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(state), indent=1) + "\n")
