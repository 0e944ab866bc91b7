"""The watcher of one machine: when its cloud is about to take it away, its own Ray node is drained."""

import logging
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import grpc
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import autoscaler_pb2, autoscaler_pb2_grpc, gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from ray_apps.spot.metadata import MetadataError
from ray_apps.spot.notices import Cloud, Machine, Notice, find_cloud
from ray_apps.spot.records import Record, write_record

logger = logging.getLogger(__name__)

MAX_WAIT_S = 8.0
"""Between two questions to a metadata server that does not answer; the shortest notice is 30 s."""
RPC_S = 3.0
LEAST_LEFT_S = 1.0
"""What Ray is told to have left at least, where the machine itself has."""
SPARED_S = 600.0
"""After its deadline, a machine that is still there."""
RECORD_AGAIN_S = 2.0


class DrainError(Exception):
    """Ray has not accepted it yet."""


class Node(Protocol):
    """What is drained. `name`: for people and records."""

    name: str

    def drain(self, deadline: float, message: str) -> list[str]:
        """Ids of what is drained from now on, by `deadline`, in seconds since 1970. Raises `DrainError`."""


class OwnNode:
    """The Ray node of this machine, in the cluster at `address` (host:port, or "auto").

    It is looked for again each time: a raylet that was started anew has another id. `name`: that of `ray start
    --node-name`, where there are several on one machine; else the machine's address tells which it is.

    Ray's own client ends the whole process when the cluster is out of reach for a minute; here each call has a timeout.
    """

    def __init__(self, address: str = "auto", name: str | None = None) -> None:
        self._address = address
        self._own_name = name
        self.name = name or services.get_node_ip_address()

    def drain(self, deadline: float, message: str) -> list[str]:
        """Drain it with reason preemption. A node that is being drained already, and earlier, is let alone.

        Raises:
            DrainError: there is no such node, the cluster does not answer, or it does not accept.
        """
        try:
            gcs = services.canonicalize_bootstrap_address(self._address)
            if gcs is None:
                raise DrainError("no Ray is running here")
            with init_grpc_channel(gcs) as channel:
                nodes, draining = self._alive(channel, gcs), _draining(channel)
                for node in nodes:
                    if not 0 < draining.get(node, 0) <= deadline:
                        _drain(channel, node, deadline, message)
        except grpc.RpcError as error:
            raise DrainError(f"{gcs}: {error.code().name}: {error.details()}") from error
        except DrainError:
            raise
        except Exception as error:  # whatever Ray raises for an address or a token that is missing or wrong
            raise DrainError(str(error)) from error
        return [node.hex() for node in nodes]

    def _alive(self, channel: grpc.Channel, gcs: str) -> list[bytes]:
        # As `ray start` does, by the address that the machine has towards the head.
        own = self._own_name or services.get_node_ip_address(gcs)
        request = gcs_service_pb2.GetAllNodeInfoRequest(state_filter=gcs_pb2.GcsNodeInfo.ALIVE)
        reply = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(request, timeout=RPC_S)
        field = "node_name" if self._own_name else "node_manager_address"
        found = [bytes(info.node_id) for info in reply.node_info_list if getattr(info, field) == own]
        if not found:
            raise DrainError(f"the cluster at {gcs} has no live node {own}")
        return found


def _draining(channel: grpc.Channel) -> dict[bytes, float]:
    """Nodes that are being drained, and by when, in seconds since 1970; 0 if at no time."""
    stub = gcs_service_pb2_grpc.NodeResourceInfoGcsServiceStub(channel)
    reply = stub.GetDrainingNodes(gcs_service_pb2.GetDrainingNodesRequest(), timeout=RPC_S)
    return {bytes(node.node_id): node.draining_deadline_timestamp_ms / 1000 for node in reply.draining_nodes}


def _drain(channel: grpc.Channel, node: bytes, deadline: float, message: str) -> None:
    request = autoscaler_pb2.DrainNodeRequest(
        node_id=node,
        reason=autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        reason_message=message,
        deadline_timestamp_ms=int(deadline * 1000),
    )
    reply = autoscaler_pb2_grpc.AutoscalerStateServiceStub(channel).DrainNode(request, timeout=RPC_S)
    if not reply.is_accepted:
        raise DrainError(f"node {node.hex()}: {reply.rejection_reason_message}")


@dataclass
class Watcher:
    """Asks for notices every `every_s` seconds, and has the node drained `margin_s` before the machine is gone.

    `find`: the cloud, once it can be told. `keep` is given each record, again when more is known, and returns at once.
    """

    find: Callable[[], Cloud]
    node: Node
    keep: Callable[[Record], None]
    margin_s: float
    every_s: float

    def __post_init__(self) -> None:
        self._cloud: Cloud | None = None
        self._machine: Machine | None = None
        self._records: dict[str, Record] = {}
        self._num_failed = 0
        self._has_failed_to_drain = False

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop` is set."""
        while not stop.is_set():
            self.look()
            stop.wait(self.wait_s)

    @property
    def wait_s(self) -> float:
        """Until the next look: longer and longer while the metadata server does not answer and there is no notice."""
        if self._due():
            return self.every_s
        return max(self.every_s, min(self.every_s * 2.0 ** min(self._num_failed, 10), MAX_WAIT_S))

    def look(self) -> None:
        """Ask once, and do what is to be done. What was seen stays seen while the metadata server is out of reach."""
        try:
            for notice in self._ask():
                if self._is_news(notice):
                    self._heed(notice)
        except MetadataError as error:
            if not self._num_failed:
                logger.warning("no answer, asked again: %s", error)
            self._num_failed += 1
        else:
            if self._num_failed:
                logger.info("the metadata server answers again")
            self._num_failed = 0
        self._drain()

    def _ask(self) -> list[Notice]:
        if self._cloud is None:
            self._cloud = self.find()
            logger.info("watching for notices of %s", self._cloud.name)
        notices = self._cloud.notices()
        if self._machine is None:
            try:
                self._machine = self._cloud.machine()
            except MetadataError as error:
                logger.info("which machine this is cannot be told yet: %s", error)
        return notices

    def _is_news(self, notice: Notice) -> bool:
        known = self._records.get(notice.id)
        return known is None or (notice.deadline or 0.0) < (known.notice.deadline or 0.0)

    def _due(self) -> list[Record]:
        """Notices in force, the earliest first. A machine that outlived its deadline by far was spared."""
        told = [(record.notice.deadline, record) for record in self._records.values() if record.notice.deadline]
        now = time.time()
        return [record for deadline, record in sorted(told, key=lambda pair: pair[0]) if now < deadline + SPARED_S]

    def _heed(self, notice: Notice) -> None:
        now = time.time()
        record = Record(
            cloud=self._cloud.name if self._cloud else "",
            machine=self._machine or Machine(),
            node=self.node.name,
            notice=notice,
            seen_at=now,
            drain_deadline=None if notice.deadline is None else drain_deadline(notice.deadline, now, self.margin_s),
        )
        self._records[notice.id] = record
        if notice.deadline is None:
            logger.warning("%s: advice (%s), nothing is drained", record.cloud, notice.kind)
        else:
            logger.warning("%s: notice (%s), %.1f s are left", record.cloud, notice.kind, notice.deadline - now)
        self.keep(record)

    def _drain(self) -> None:
        """Have the node drained by the earliest deadline. Asked again each time: a raylet may be started anew."""
        if not (due := self._due()):
            return
        first = due[0]
        try:
            drained = self.node.drain(first.drain_deadline or 0.0, f"{first.cloud}: {first.notice.kind}")
        except DrainError as error:
            if not self._has_failed_to_drain:
                logger.warning("not drained, tried again: %s", error)
            self._has_failed_to_drain = True
            return
        self._has_failed_to_drain = False
        if new := [node for node in drained if node not in first.drained]:
            logger.warning("drained: node %s (%s)", ", ".join(new), self.node.name)
            self._records[first.notice.id] = replace(first, drained=(*first.drained, *new))
            self.keep(self._records[first.notice.id])


def drain_deadline(deadline: float, now: float, margin_s: float) -> float:
    """What Ray is told: earlier than the machine's own `deadline`, as work beside a dying machine dies with it."""
    return max(deadline - margin_s, min(now + LEAST_LEFT_S, deadline))


class Recorder:
    """Writes records to a place from a thread, each until it is written: no drain waits for a slow disk or S3."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._pending: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="write-records", daemon=True)
        self._thread.start()

    def keep(self, record: Record) -> None:
        """Have it written soon."""
        self._pending.put(record)

    def end(self, timeout_s: float) -> None:
        """Wait for what is not written yet."""
        self._pending.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (record := self._pending.get()) is not None:
            while not self._write(record):
                time.sleep(RECORD_AGAIN_S)

    def _write(self, record: Record) -> bool:
        try:
            write_record(self._place, record)
        except (OSError, ValueError) as error:  # pyarrow raises either
            logger.warning("%s: not recorded, tried again: %s", self._place, error)
            return False
        return True


def watch(
    *,
    cloud: str | None,
    url: str | None,
    address: str,
    node: str | None,
    records: str | None,
    margin_s: float,
    every_s: float,
) -> None:
    """Watch until SIGTERM. See the command line's `vicuna spot watch`."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda signum, frame: stop.set())
    recorder = Recorder(records) if records else None
    try:
        Watcher(
            find=lambda: find_cloud(cloud, url),
            node=OwnNode(address, node),
            keep=recorder.keep if recorder else lambda record: None,
            margin_s=margin_s,
            every_s=every_s,
        ).run(stop)
    finally:
        if recorder:
            recorder.end(2 * RECORD_AGAIN_S)
