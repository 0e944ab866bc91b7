"""The shards of a replica's model as actors of Ray, one in each bundle of the replica's placement group."""

from collections.abc import Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_apps.engine.native.shards import Load, Place, run_shard


class _Shard:
    """One rank above 0."""

    def run(self, place: Place, load: Load, device: str, num_threads: int) -> None:
        """Be it until rank 0 is gone."""
        run_shard(place, load, device, num_threads)


class ActorShards:
    """Actors in the bundles of the placement group that this process is in; it has the first one itself.

    They end with the process that made them, as they belong to it.
    """

    def __init__(self, places: Sequence[Place], load: Load, *, device: str, num_threads: int) -> None:
        group: PlacementGroup | None = ray.util.get_current_placement_group()
        assert group is not None
        self._actors = [_start(group, place, device) for place in places]
        self._runs = [
            actor.run.remote(place, load, device, num_threads).future()
            for actor, place in zip(self._actors, places, strict=True)
        ]

    @property
    def are_alive(self) -> bool:
        """Whether all of them are."""
        return not any(run.done() for run in self._runs)

    def stop(self) -> None:
        """End them at once."""
        for actor in self._actors:
            ray.kill(actor)


def _start(group: PlacementGroup, place: Place, device: str) -> Any:
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=place.rank)
    options = {"num_cpus": 1, "num_gpus": 1 if device == "cuda" else 0, "scheduling_strategy": strategy}
    return ray.remote(_Shard).options(**options).remote()
