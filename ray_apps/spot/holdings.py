"""The clusters that a launcher has, in whatever condition: what it does with one is in the state before it is done."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data_prep.errors import SpotError
from ray_apps.spot.clusters import Clusters
from ray_apps.spot.launch_state import LaunchState, read_state, write_state
from ray_apps.spot.policy import forget

logger = logging.getLogger(__name__)

END_AGAIN_S = 60.0
"""Seconds between two tries to end what could not be ended."""


class Holdings:
    """`path`: of the state. `now`: seconds since 1970.

    Raises:
        SpotError: the file is no state.
    """

    def __init__(self, path: Path, clusters: Clusters, now: Callable[[], float]) -> None:
        self.path = path
        self.state = read_state(path)
        self._clusters = clusters
        self._now = now
        self._ended_at = -math.inf

    @property
    def are_any(self) -> bool:
        """Whether the state names a cluster."""
        return bool(self.state.cluster or self.state.starting or self.state.left)

    def begin(self, store: str | None) -> None:
        """Be about the run in `store`.

        Raises:
            SpotError: the state is of a run in another store that has machines.
        """
        if self.state.store == store:
            return
        if self.are_any:
            raise SpotError(
                f"{self.path}: is of the run in {self.state.store}, which has machines; choose another spot.name, or "
                "end them with `vicuna spot down`"
            )
        self.save(LaunchState(store=store))

    def save(self, state: LaunchState) -> None:
        """Take over a state once it is in the file."""
        if state != self.state:
            write_state(self.path, state)
        self.state = state

    def update(self, **values: object) -> None:
        """Save other values of the state."""
        self.save(replace(self.state, **values))  # type: ignore[arg-type]

    def leave(self) -> None:
        """End the cluster that is up, now or, if that fails, later."""
        self.save(self.state.leaving())
        self.end_left()

    def give_up(self) -> None:
        """End the one that was asked for, likewise."""
        self.save(self.state.given_up())
        self.end_left()

    def end_later(self) -> None:
        """Try again what could not be ended, unless that was a moment ago."""
        if self._now() - self._ended_at >= END_AGAIN_S:
            self.end_left()

    def end_left(self) -> tuple[int, list[str]]:
        """Of the clusters that are to be ended: how many machines were, and what went wrong."""
        num_ended, problems, self._ended_at = 0, [], self._now()
        for cluster in self.state.left:
            try:
                num_ended += self._clusters.end(cluster)
            except SpotError as error:
                logger.warning("%s is to be ended, and is not yet: %s", cluster.name, error)
                problems.append(str(error))
            else:
                self.save(self.state.ended(cluster, self._now()))
        return num_ended, problems

    def end_all(self, name: str) -> int:
        """End what the state names, and all that is of this name, wherever; how many machines.

        Raises:
            SpotError: a machine cannot be terminated; the state still names its cluster.
        """
        if self.state.starting is not None:
            self.save(self.state.given_up())
        if self.state.cluster is not None:
            self.save(replace(self.state.leaving(), policy=forget(self.state.policy)))
        num_ended, problems = self.end_left()
        num_ended += self._clusters.end_all(name)
        if problems:
            raise SpotError("; ".join(problems))
        return num_ended
