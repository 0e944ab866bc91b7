"""Workers on a Ray cluster: one actor each, placed as Ray Train would place them."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from data_prep.errors import RunError
from ray_apps.doctor.workers import Answer, Function, attempt

START_S = 60
"""An actor starts a Python process, after its node has the code."""


class ClusterWorkers:
    """Workers on the nodes of the cluster that this process is connected to; they end with the block.

    A cluster that grows on demand is given `wait_s` seconds to do so.
    """

    def __init__(self, num_workers: int, *, num_cpus: int, use_gpu: bool, wait_s: float) -> None:
        self.nodes: list[str] = []
        self.address = ""
        self._num_workers = num_workers
        self._bundle = {"CPU": num_cpus, **({"GPU": 1} if use_gpu else {})}
        self._wait_s = wait_s
        self._group: PlacementGroup | None = None
        self._actors: dict[int, Any] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        """Raises RunError: the cluster has no place for the workers, or they do not start."""
        self._group = placement_group([self._bundle] * self._num_workers, strategy="PACK")
        if not self._group.wait(self._wait_s):
            raise RunError(
                f"no place within {self._wait_s:.0f} s for {self._num_workers} workers of {_describe(self._bundle)} "
                f"each: the cluster has {_describe(cluster_resources())}"
            )
        actor = ray.remote(_Worker)
        for rank in range(self._num_workers):
            place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank)
            self._actors[rank] = actor.options(
                num_cpus=self._bundle["CPU"], num_gpus=self._bundle.get("GPU", 0), scheduling_strategy=place
            ).remote(rank, self._num_workers)
        try:
            self.nodes = ray.get([worker.node.remote() for worker in self._actors.values()], timeout=START_S)
        except ray.exceptions.RayError as error:
            raise RunError(f"the workers did not start: {str(error).strip().splitlines()[0]}") from None
        self.address = self.nodes[0]

    def __exit__(self, *error: object) -> None:
        for rank in list(self._actors):
            self._end(rank)
        if self._group is not None:
            remove_placement_group(self._group)

    def run(
        self, function: Function, *arguments: Any, timeout_s: float, ranks: Sequence[int] | None = None
    ) -> list[Answer]:
        """Call the function on the workers; one that gives no answer within `timeout_s` is ended."""
        asked = range(len(self.nodes)) if ranks is None else ranks
        called = {rank: self._actors[rank].call.remote(function, arguments) for rank in asked if rank in self._actors}
        deadline = time.monotonic() + timeout_s
        return [self._receive(rank, called.get(rank), deadline, timeout_s) for rank in asked]

    def _receive(self, rank: int, reference: Any, deadline: float, timeout_s: float) -> Answer:
        if reference is None:
            return self._silent(rank, "its process has ended")
        try:
            value, failure = ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            self._end(rank)
            return self._silent(rank, f"no answer within {timeout_s:.0f} s")
        except ray.exceptions.RayError as error:
            self._end(rank)
            return self._silent(rank, str(error).strip().splitlines()[0])
        return Answer(rank, self.nodes[rank], value, failure)

    def _silent(self, rank: int, failure: str) -> Answer:
        return Answer(rank, self.nodes[rank], failure=failure, silent=True)

    def _end(self, rank: int) -> None:
        with suppress(ray.exceptions.RayError):
            ray.kill(self._actors.pop(rank))


class _Worker:
    """An actor that answers calls."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._place = (rank, world_size)

    def node(self) -> str:
        """The address of its node, by which nodes are told apart."""
        return str(ray.util.get_node_ip_address())

    def call(self, function: Function, arguments: Sequence[Any]) -> tuple[Any, str | None]:
        """Call the function; an error is an answer too."""
        return attempt(function, *self._place, *arguments)


def cluster_resources() -> dict[str, float]:
    """CPUs and GPUs that the nodes of the cluster have now."""
    resources = ray.cluster_resources()
    return {kind: resources.get(kind, 0) for kind in ("CPU", "GPU")}


def num_nodes() -> int:
    """Nodes that take work now."""
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())


def _describe(resources: dict[str, Any]) -> str:
    return " and ".join(f"{amount:.0f} {kind}s" for kind, amount in resources.items())
