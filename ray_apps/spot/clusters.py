"""What the launcher asks of a cloud's clusters, and of jobs on them; and how they fail. Knows no Ray, no cloud."""

from dataclasses import dataclass
from typing import Protocol

from ray_apps.spot.aws_errors import Blame
from ray_apps.spot.launch_state import Cluster
from ray_apps.spot.placement import Offer


class StartError(Exception):
    """A cluster did not come up. `blame`: what is let alone. `was_paid`: there were machines for a while."""

    def __init__(self, blamed: Blame, text: str, *, was_paid: bool = False) -> None:
        super().__init__(text)
        self.blame = blamed
        self.was_paid = was_paid


def start_error(blamed: Blame, text: str) -> StartError:
    """Of a request that was answered so: what is to be tried again later is let alone until then."""
    return StartError(Blame.POOL if blamed is Blame.RETRY else blamed, text)


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


class Jobs(Protocol):
    """Jobs on clusters, by id. Everything raises SilentError if there is no answer."""

    def submit(self, cluster: Cluster, job: str, recipe: str) -> None:
        """Hand over the training that the recipe, YAML, describes."""

    def job_status(self, cluster: Cluster, job: str) -> str | None:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; None if the cluster does not know the job."""

    def job_log(self, cluster: Cluster, job: str) -> str:
        """The last lines that it printed."""
