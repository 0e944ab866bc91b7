"""Actors answer, fail, die or hang as local workers do."""

import os
import time
from collections.abc import Iterator

import pytest

from ray_apps.doctor.workers import failures

pytestmark = pytest.mark.ray


def place(rank: int, world_size: int) -> tuple[int, int]:
    return rank, world_size


def fail(rank: int, world_size: int) -> None:
    raise ValueError("no such thing\nand more")


def die_or_hang(rank: int, world_size: int) -> None:
    if rank == 1:
        os._exit(7)
    time.sleep(60)


@pytest.fixture
def ray_cluster() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_actors_answer_as_processes_do(ray_cluster: None) -> None:
    import ray

    from ray_apps.doctor.cluster import ClusterWorkers

    with ClusterWorkers(2, num_cpus=1, use_gpu=False, wait_s=60) as workers:
        assert len(set(workers.nodes)) == 1
        assert workers.address == workers.nodes[0]
        assert [answer.value for answer in workers.run(place, timeout_s=60)] == [(0, 2), (1, 2)]
        assert failures(workers.run(fail, timeout_s=60, ranks=[1])) == f"rank 1 ({workers.nodes[1]}): no such thing"
        hanging, dead = workers.run(die_or_hang, timeout_s=3)
        assert hanging.failure == "no answer within 3 s"
        assert dead.silent
        assert [answer.failure for answer in workers.run(place, timeout_s=60)] == ["its process has ended"] * 2
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 2
