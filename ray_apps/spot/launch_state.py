"""What the launcher knows, in a file that is written before each thing it does: a kill at any point loses nothing."""

import fcntl
import json
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.errors import SpotError
from data_prep.storage import write_text
from ray_apps.spot.placement import Purchase
from ray_apps.spot.policy import State

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cluster:
    """`usd_per_hour`: of all its machines, since `priced_at`. `spent_usd`: what it had cost by then.

    `lost_at`: since when it has too few workers. Times are seconds since 1970.
    """

    name: str
    region: str
    zone: str
    purchase: Purchase
    usd_per_hour: float
    started_at: float
    priced_at: float
    spent_usd: float = 0.0
    lost_at: float | None = None

    @property
    def place(self) -> tuple[str, Purchase]:
        """Its zone, and what its machines are bought as."""
        return self.zone, self.purchase

    def usd(self, now: float) -> float:
        """What it has cost so far."""
        return self.spent_usd + max(0.0, now - self.priced_at) / 3600 * self.usd_per_hour

    def repriced(self, usd_per_hour: float, now: float) -> "Cluster":
        """At another price from now on."""
        return replace(self, spent_usd=self.usd(now), priced_at=now, usd_per_hour=usd_per_hour)


@dataclass(frozen=True)
class LaunchState:
    """`store`: of the run that it is about. `cluster`: the one that is up. `starting`: one that was asked for.

    `left`: those to be ended. `first_start`: seconds since 1970. `spent_usd`: by clusters that have ended.
    `num_starts`: of clusters so far. `job`: the id of the one that was handed to the cluster last, empty if none was.
    `num_failures`: of jobs in a row, with no newer checkpoint than that of `failed_step`.
    """

    store: str | None = None
    cluster: Cluster | None = None
    starting: Cluster | None = None
    left: tuple[Cluster, ...] = ()
    first_start: float | None = None
    spent_usd: float = 0.0
    num_starts: int = 0
    num_jobs: int = 0
    job: str = ""
    num_failures: int = 0
    failed_step: int = 0
    policy: State = field(default_factory=State)
    cooldowns: tuple[tuple[str | float, ...], ...] = ()

    def usd(self, now: float) -> float:
        """What was spent so far."""
        paid = (*self.left, self.cluster, self.starting)
        return self.spent_usd + sum(cluster.usd(now) for cluster in paid if cluster is not None)

    def at_h(self, now: float) -> float:
        """Hours since the first start."""
        return 0.0 if self.first_start is None else (now - self.first_start) / 3600

    def describe(self, workers: str, now: float) -> str:
        """One line for people; `workers`: what is known of those of its cluster."""
        spent = f"${self.usd(now):.2f} spent, {self.num_starts} starts"
        if self.left:
            spent += f"; to be ended: {', '.join(cluster.name for cluster in self.left)}"
        if (cluster := self.cluster or self.starting) is None:
            return f"no cluster; {spent}"
        kind = "up" if self.cluster else "starting, or its launcher was killed"
        return f"{cluster.name} in {cluster.zone}: {kind}, {workers}, ${cluster.usd_per_hour:.2f}/h; {spent}"

    def asked_for(self, cluster: Cluster) -> "LaunchState":
        """With a cluster that is about to be asked for."""
        first = cluster.started_at if self.first_start is None else self.first_start
        return replace(self, starting=cluster, first_start=first, num_starts=self.num_starts + 1)

    def arrived(self) -> "LaunchState":
        """With that cluster in place of the one before."""
        return replace(self, cluster=self.starting, starting=None, job="")

    def given_up(self) -> "LaunchState":
        """With that cluster among those to be ended."""
        assert self.starting is not None
        return replace(self, starting=None, left=(*self.left, self.starting))

    def leaving(self) -> "LaunchState":
        """With the cluster that is up among those to be ended."""
        assert self.cluster is not None
        return replace(self, cluster=None, left=(*self.left, self.cluster), job="")

    def ended(self, cluster: Cluster, now: float) -> "LaunchState":
        """Without a cluster of which nothing is left."""
        left = tuple(other for other in self.left if other != cluster)
        return replace(self, left=left, spent_usd=self.spent_usd + cluster.usd(now))


def read_state(path: Path) -> LaunchState:
    """The state; a new one if there is no file.

    Raises:
        SpotError: the file is not one of these.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        nested = {
            **{name: values[name] and Cluster(**values[name]) for name in ("cluster", "starting")},
            "left": tuple(Cluster(**cluster) for cluster in values["left"]),
            "policy": _policy_state(values["policy"]),
            "cooldowns": tuple(tuple(entry) for entry in values["cooldowns"]),
        }
        return LaunchState(**{**values, **nested})
    except FileNotFoundError:
        return LaunchState()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpotError(f"{path}: not a state of the launcher: {error}; machines may run that it named") from None


def _policy_state(values: dict[str, Any]) -> State:
    running = values["running"] and tuple(values["running"])
    return State(**{**values, "running": running, "cooling": tuple((zone, until) for zone, until in values["cooling"])})


def write_state(path: Path, state: LaunchState) -> None:
    """Write it so that a kill leaves the old one or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(state), indent=1) + "\n")


@contextmanager
def held(path: Path, *, end_other: bool = False) -> Iterator[None]:
    """Be the only launcher of a state while the block runs.

    `end_other`: another one gets SIGTERM, and is waited for.

    Raises:
        SpotError: another process is, and stays; names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            other = lock.read()
            if not (end_other and other):
                raise SpotError(
                    f"{path}: process {other or '?'} looks after this cluster already; Ctrl-C there takes it down"
                ) from None
            logger.warning("process %s looks after this cluster: it is asked to end, and saves first", other)
            os.kill(int(other), signal.SIGTERM)
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
        lock.truncate(0)
