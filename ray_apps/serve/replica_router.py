"""How Ray Serve chooses a replica for a request: by `Affinity`, with what Serve knows of each replica's load."""

from collections import defaultdict
from typing import Any

from ray.serve.request_router import MultiplexMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from ray_apps.serve.affinity import Affinity


class AffinityRouter(MultiplexMixin, RequestRouter):
    """Sends a session's requests to the replica that answered it last, and spills over when that one is full or busier.

    Session and adapter (Serve's multiplexed model) are those of the handle's options. Requests without are spread.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._affinity: Affinity[str] = Affinity()
        self._ongoing: defaultdict[str, set[str]] = defaultdict(set)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Every replica, best first; Serve takes the first that has room, and asks again later if none has."""
        if pending_request is None:
            return [candidate_replicas]
        # Otherwise Serve would ask again at once, and again, while all are full.
        pending_request.routing_context.should_backoff = True
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {name: self._load(replica) for name, replica in replicas.items()}
        adapter = pending_request.metadata.multiplexed_model_id
        holders = [name for name, replica in replicas.items() if adapter in replica.multiplexed_model_ids]
        return [[replicas[name]] for name in self._affinity.rank(_session(pending_request), loads, holders)]

    def _load(self, replica: RunningReplica) -> int:
        """Requests it has. Serve's own count includes those on their way to it, but is forgotten after a while."""
        known: int | None = self.replica_queue_len_cache.get(replica.replica_id)
        return len(self._ongoing[replica.replica_id.unique_id]) if known is None else known

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """The replica has accepted the request."""
        self._affinity.remember(_session(pending_request), replica_id.unique_id)
        self._ongoing[replica_id.unique_id].add(pending_request.metadata.internal_request_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """The replica has answered it, or cannot."""
        self._ongoing[replica_id.unique_id].discard(internal_request_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """These are the replicas there are now."""
        super().update_replicas(replicas)
        for gone in self._ongoing.keys() - {replica.replica_id.unique_id for replica in replicas}:
            del self._ongoing[gone]


def _session(request: PendingRequest) -> str:
    return request.metadata.session_id or request.metadata.internal_request_id
