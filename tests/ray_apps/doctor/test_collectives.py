"""Real processes that exchange tensors over gloo: right, wrong, dead and hanging ones."""

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ray_apps.doctor import collectives
from ray_apps.doctor.collectives import OPERATIONS, bus_bandwidth, check_collectives, free_port, judge
from ray_apps.doctor.workers import LocalWorkers, failures


def figures(**changes: Any) -> dict[str, Any]:
    return {"latency_s": 20e-6, "bytes": 2**28, "seconds": 0.002, "wrong": [], **changes}


def test_bus_bandwidth_is_what_a_link_carries() -> None:
    """As in nccl-tests: 2 (n - 1) / n for all_reduce, (n - 1) / n for the others."""
    assert bus_bandwidth("all_reduce", 8_000, 1.0, 8) == 14_000
    assert bus_bandwidth("all_gather", 8_000, 1.0, 8) == 7_000
    assert bus_bandwidth("reduce_scatter", 8_000, 2.0, 8) == 3_500


def test_figures_have_units() -> None:
    check = judge("all_reduce", ["a", "b"], [figures(), figures()])
    assert check.found == "134.22 GB/s (bus 134.22 GB/s) with 256 MiB, 20 µs with 4 KiB"
    assert check.measures["latency_s"] == 20e-6


def test_a_wrong_result_names_the_machine() -> None:
    check = judge("all_gather", ["a", "b"], [figures(wrong=[1]), figures(wrong=[1])])
    assert check.status == "problem"
    assert check.found.startswith("wrong result of rank 1 (b); ")


def test_one_worker_has_nobody_to_exchange_with() -> None:
    (check,) = check_collectives(LocalWorkers(1), use_gpu=False)
    assert check.status == "ok"


def load(rank: int, world_size: int) -> None:
    """Import what takes time, so that no time limit meets it."""
    import torch.distributed

    assert torch.distributed.is_available()


def send_other_numbers(rank: int, world_size: int) -> None:
    if rank == 1:
        right = collectives.pattern
        collectives.pattern = lambda rank, *rest: right(rank + 1 if rank else 0, *rest)


def hang_when_exchanging(rank: int, world_size: int) -> None:
    if rank == 1:
        collectives._Exchange.measure = lambda *arguments: time.sleep(60)  # type: ignore[assignment, method-assign]


def die_when_exchanging(rank: int, world_size: int) -> None:
    if rank == 1:
        collectives._Exchange.measure = lambda *arguments: os._exit(3)  # type: ignore[assignment, method-assign]


def hang_before_meeting(rank: int, world_size: int) -> None:
    if rank == 1:
        collectives._meet = lambda *arguments: time.sleep(60)


@pytest.fixture
def workers() -> Iterator[LocalWorkers]:
    with LocalWorkers(2) as workers:
        assert not failures(workers.run(load, timeout_s=120))
        yield workers


@pytest.mark.slow
def test_two_processes_exchange_what_they_should(workers: LocalWorkers) -> None:
    found = list(check_collectives(workers, use_gpu=False, timeout_s=30))
    assert [(check.name, check.status) for check in found] == [(name, "ok") for name in OPERATIONS]
    for check in found:
        assert check.measures["bus_gb_per_s"] > 0
        assert check.measures["large_bytes"] > collectives.SMALL_BYTES
        assert 0 < check.measures["latency_s"] < 1


@pytest.mark.slow
def test_a_rank_that_sends_other_numbers_is_named(workers: LocalWorkers) -> None:
    workers.run(send_other_numbers, timeout_s=60)
    found = {check.name: check for check in check_collectives(workers, use_gpu=False, timeout_s=30)}
    assert {check.status for check in found.values()} == {"problem"}
    assert found["all_gather"].found.startswith(f"wrong result of rank 1 ({workers.nodes[1]})")
    assert "take that machine out" in found["all_gather"].advice


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sabotage", "told"),
    [
        (hang_before_meeting, "no answer within 8 s"),
        (hang_when_exchanging, "no answer within 8 s"),
        (die_when_exchanging, "its process died with exit code 3"),
    ],
)
def test_a_rank_that_is_gone_is_named(workers: LocalWorkers, sabotage: Any, told: str) -> None:
    workers.run(sabotage, timeout_s=60)
    (check,) = check_collectives(workers, use_gpu=False, timeout_s=4)
    assert (check.name, check.status, check.found) == ("gloo", "problem", f"rank 1 ({workers.nodes[1]}): {told}")
    assert check.advice.startswith("look at that worker's node first")


@pytest.mark.slow
def test_an_address_that_cannot_be_reached_is_told(workers: LocalWorkers) -> None:
    (port,) = workers.run(free_port, timeout_s=60, ranks=[0])
    arguments = ("127.0.0.1", port.value, False, 1.0)
    (answer,) = workers.run(collectives.measure_collectives, *arguments, timeout_s=30, ranks=[1])
    assert answer.failure == f"rank 0 cannot be reached at 127.0.0.1:{port.value}"
    (answer,) = workers.run(collectives.measure_collectives, *arguments, timeout_s=30, ranks=[0])
    assert answer.failure == "rank 1 did not join within 1 s"


@pytest.mark.gpu
def test_gpus_exchange_what_they_should() -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with LocalWorkers(2) as workers:
        found = list(check_collectives(workers, use_gpu=True, timeout_s=60))
    assert [(check.name, check.status) for check in found] == [(name, "ok") for name in OPERATIONS]
