"""All checks together, on this machine and on a cluster."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_apps.doctor.check import Check
from ray_apps.doctor.collectives import OPERATIONS
from ray_apps.doctor.examine import examine, place_workers
from ray_apps.doctor.needs import MACHINE, Needs


@pytest.mark.parametrize(
    ("needs", "machine", "placed", "status"),
    [
        (MACHINE, (2, 0), (2, 1), "ok"),
        (MACHINE, (1, 0), (2, 1), "ok"),  # they share it, so that there is something to exchange
        (MACHINE, (96, 8), (8, 12), "ok"),
        (Needs(num_workers=4, cpus_per_worker=2), (8, 0), (4, 2), "ok"),
        (Needs(num_workers=8, cpus_per_worker=1), (2, 0), (2, 1), "problem"),
        (Needs(num_workers=8, cpus_per_worker=4, use_gpu=True), (96, 0), (1, 4), "problem"),
        (Needs(num_workers=8, cpus_per_worker=4, use_gpu=True), (96, 4), (4, 4), "problem"),
        (Needs(num_workers=2, cpus_per_worker=64), (4, 0), (1, 64), "problem"),
    ],
)
def test_workers_are_placed_as_far_as_the_machine_reaches(
    needs: Needs, machine: tuple[int, int], placed: tuple[int, int], status: str
) -> None:
    *found, check = place_workers(needs, *machine)
    assert tuple(found) == placed
    assert check.status == status


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.mark.slow
def test_this_machine_does_what_a_small_recipe_needs(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    needs = Needs(
        num_workers=2,
        cpus_per_worker=1,
        use_gpu=False,
        writes={"train.run_dir": str(tmp_path / "run")},
        datasets={"train.dataset": str(tmp_path / "dataset")},
        models={"train.model": str(tiny_model_dir)},
        num_checkpoints=3,
    )
    found = by_name(examine(needs, wait_s=1))
    if len(os.sched_getaffinity(0)) > 1:
        assert {name: found[name].status for name in ("workers", *OPERATIONS)} == dict.fromkeys(
            ("workers", *OPERATIONS), "ok"
        )
    assert found["train.model"].status == "ok"
    assert found["train.dataset"].status == "warning"
    run = found["train.run_dir"]
    assert run.status == "ok"
    assert run.measures["needed_bytes"] == 3 * found["train.model"].measures["checkpoint_bytes"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster with three CPUs, at an address that is not asked for since it is joined already."""
    import ray

    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    yield
    ray.shutdown()


@pytest.mark.ray
def test_a_cluster_does_what_a_small_recipe_needs(cluster: None, tmp_path: Path) -> None:
    needs = Needs(num_workers=2, cpus_per_worker=1, writes={"train.run_dir": str(tmp_path)})
    found = by_name(examine(needs, wait_s=60))
    assert found["workers"].found == "2 workers on 1 node of the cluster"
    assert {found[name].status for name in (*OPERATIONS, "train.run_dir")} == {"ok"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_a_cluster_without_a_place_is_told_and_asked_for_no_more(cluster: None) -> None:
    import ray
    from ray.util import placement_group_table

    *_, check = examine(Needs(num_workers=2, cpus_per_worker=2), wait_s=0.5)
    assert check.status == "problem"
    assert check.found == ("no place within 0 s for 2 workers of 2 CPUs each: the cluster has 3 CPUs and 0 GPUs")
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}
    assert ray.is_initialized()
