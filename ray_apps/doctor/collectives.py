"""Whether the workers can exchange tensors, how fast, and whether what arrives is right.

Bandwidths are those of NVIDIA's nccl-tests: the algorithm's is the size of the whole buffer over the time; the bus's is
what each link carries, and can be held against the hardware's figure whatever the number of workers.
"""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from ray_apps.doctor.check import Check
from ray_apps.doctor.workers import Answer, Workers, failures

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter")
SMALL_BYTES = 4 * 2**10
LARGE_BYTES = {"gloo": 64 * 2**20, "nccl": 256 * 2**20}
BUDGET_S = 0.4
"""A message grows until the next would take longer."""
GROWTH = 4
TIMEOUT_S = 15.0
"""For the workers to find each other, and for each exchange."""

Tensor = Any
"""A `torch.Tensor`: torch is imported in the workers alone."""


def free_port(rank: int, world_size: int) -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def measure_collectives(
    rank: int, world_size: int, address: str, port: int, use_gpu: bool, timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """Exchange tensors with the other workers. Runs in each of them, and returns figures by operation.

    Raises:
        TimeoutError: naming the ranks that did not join, or the exchange that did not end.
        RuntimeError: the library's own error.
    """
    import torch
    import torch.distributed as dist

    backend, device = "gloo", torch.device("cpu")
    if use_gpu:
        backend, device = "nccl", torch.device("cuda", rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    store = _meet(rank, world_size, address, port, timedelta(seconds=timeout_s))
    # NCCL would end the process at its time limit; _Exchange waits no longer than it should by itself.
    limit = timedelta(seconds=timeout_s if backend == "gloo" else 100 * timeout_s)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
    exchange = _Exchange(rank, world_size, device, timeout_s)
    figures = {name: exchange.measure(name, LARGE_BYTES[backend]) for name in OPERATIONS}
    dist.destroy_process_group()  # not after an error: it might wait for a peer that is gone
    return figures


def _meet(rank: int, world_size: int, address: str, port: int, limit: timedelta) -> Any:
    """The store of all workers, once each has come: the first exchange would hang without saying for whom."""
    import torch.distributed as dist

    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=rank == 0, wait_for_workers=False, timeout=limit
        )
    except dist.DistError as error:
        raise TimeoutError(f"rank 0 cannot be reached at {address}:{port}") from error
    store.set(f"here/{rank}", "1")
    try:
        store.wait([f"here/{other}" for other in range(world_size)], limit)
    except dist.DistError:
        absent = [str(other) for other in range(world_size) if not store.check([f"here/{other}"])]
        told = f"rank {', '.join(absent)} did not join within {limit.total_seconds():.0f} s"
        raise TimeoutError(told) from None
    return store


def pattern(rank: int, length: int, device: Any) -> Tensor:
    """What `rank` sends: small integers, whose sums are exact, different for each rank and place."""
    import torch

    return torch.arange(length, device=device).remainder(97).add(rank).float()


class _Exchange:
    """The three exchanges of sharded training on one worker."""

    def __init__(self, rank: int, world_size: int, device: Any, timeout_s: float) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.timeout_s = timeout_s

    def measure(self, name: str, largest_bytes: int) -> dict[str, Any]:
        """Latency of a small message, time of a large one, and who sent or got something wrong."""
        length = self._length(SMALL_BYTES)
        latency = seconds = self._time(name, length, repeats=20)
        while length * 4 * GROWTH <= largest_bytes and seconds * GROWTH < BUDGET_S:
            length = self._length(length * 4 * GROWTH)
            seconds = self._time(name, length, repeats=2)
        return {"latency_s": latency, "bytes": length * 4, "seconds": seconds, "wrong": self._verify(name, length)}

    def _length(self, num_bytes: int) -> int:
        """Numbers of four bytes that can be shared out evenly."""
        return max(1, num_bytes // 4 // self.world_size) * self.world_size

    def _time(self, name: str, length: int, repeats: int) -> float:
        """Seconds of one exchange, at the slowest worker: every worker gets the same figure."""
        import torch

        send, receive = self._buffers(name, torch.zeros(length, device=self.device))
        self._exchange(name, send, receive)
        started = time.perf_counter()
        for _ in range(repeats):
            self._exchange(name, send, receive)
        mine = torch.tensor([(time.perf_counter() - started) / repeats], device=self.device)
        return float(self._slowest(mine))

    def _slowest(self, mine: Tensor) -> Tensor:
        import torch.distributed as dist

        dist.all_reduce(mine, dist.ReduceOp.MAX)
        return mine

    def _verify(self, name: str, length: int) -> list[int]:
        """Ranks whose part is wrong: whose sum differs here, or whose numbers did not arrive as sent."""
        send, receive = self._buffers(name, pattern(self.rank, length, self.device))
        self._exchange(name, send, receive)
        base = pattern(0, length, self.device)
        parts = base.chunk(self.world_size)
        if name == "all_gather":
            arrived = receive.chunk(self.world_size)
            return [rank for rank, part in enumerate(arrived) if not part.equal(parts[rank] + rank)]
        mine = base if name == "all_reduce" else parts[self.rank]
        total = mine * self.world_size + self.world_size * (self.world_size - 1) // 2
        return [] if receive.equal(total) else [self.rank]

    def _buffers(self, name: str, whole: Tensor) -> tuple[Tensor, Tensor]:
        """What is sent and where it arrives, of which the larger is `whole` in length."""
        part = whole.chunk(self.world_size)[self.rank].clone()
        return {"all_reduce": (whole, whole), "all_gather": (part, whole.clone()), "reduce_scatter": (whole, part)}[
            name
        ]

    def _exchange(self, name: str, send: Tensor, receive: Tensor) -> None:
        import torch.distributed as dist

        calls: dict[str, Callable[[], object]] = {
            "all_reduce": lambda: dist.all_reduce(send),
            "all_gather": lambda: dist.all_gather_single(receive, send),
            "reduce_scatter": lambda: dist.reduce_scatter_single(receive, send),
        }
        calls[name]()
        if self.device.type == "cuda":
            self._wait_for_gpu(name)

    def _wait_for_gpu(self, name: str) -> None:
        """Like `synchronize`, which would wait forever for a peer that is gone."""
        import torch

        done = torch.cuda.Event()
        done.record()
        deadline = time.monotonic() + self.timeout_s
        while not done.query():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} did not end within {self.timeout_s:.0f} s")


def bus_bandwidth(name: str, num_bytes: int, seconds: float, world_size: int) -> float:
    """Bytes a second over each link, from the size of the whole buffer."""
    rounds = 2 if name == "all_reduce" else 1
    return num_bytes / seconds * rounds * (world_size - 1) / world_size


def check_collectives(workers: Workers, *, use_gpu: bool, timeout_s: float = TIMEOUT_S) -> Iterator[Check]:
    """Exchange tensors between all workers."""
    world_size = len(workers.nodes)
    backend = "nccl" if use_gpu else "gloo"
    if world_size == 1:
        yield Check("collectives", backend, "ok", "one worker: nothing to exchange")
        return
    answers = workers.run(free_port, timeout_s=timeout_s, ranks=[0])
    if not failures(answers):
        arguments = (workers.address, answers[0].value, use_gpu, timeout_s)
        answers = workers.run(measure_collectives, *arguments, timeout_s=2 * timeout_s)
    if told := failures(answers):
        yield Check("collectives", backend, "problem", told, _advice(answers))
        return
    for name in OPERATIONS:
        yield judge(name, workers.nodes, [answer.value[name] for answer in answers])


def _advice(answers: Sequence[Answer]) -> str:
    if any(answer.silent for answer in answers):
        return "look at that worker's node first: the others waited for it"
    return "open all ports between the nodes; with several networks, set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"


def judge(name: str, nodes: Sequence[str], figures: Sequence[dict[str, Any]]) -> Check:
    """One operation, from what every rank measured."""
    first = figures[0]
    size, seconds, latency = first["bytes"], first["seconds"], first["latency_s"]
    bus = bus_bandwidth(name, size, seconds, len(nodes))
    found = (
        f"{size / seconds / 1e9:.2f} GB/s (bus {bus / 1e9:.2f} GB/s) with {size / 2**20:.0f} MiB, "
        f"{latency * 1e6:,.0f} µs with {SMALL_BYTES // 2**10} KiB"
    )
    measures = {
        "num_workers": len(nodes),
        "algorithm_gb_per_s": size / seconds / 1e9,
        "bus_gb_per_s": bus / 1e9,
        "large_bytes": size,
        "latency_s": latency,
    }
    wrong = sorted({rank for each in figures for rank in each["wrong"]})
    if not wrong:
        return Check("collectives", name, "ok", found, measures=measures)
    told = ", ".join(f"rank {rank} ({nodes[rank]})" for rank in wrong)
    advice = "take that machine out: it changes numbers on the way, and would train a wrong model"
    return Check("collectives", name, "problem", f"wrong result of {told}; {found}", advice, measures)
