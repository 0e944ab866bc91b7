"""All checks in order: what is cheap and spoils the rest comes first."""

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack

from data_prep.errors import RunError
from ray_apps.doctor.check import Check
from ray_apps.doctor.collectives import check_collectives
from ray_apps.doctor.devices import check_devices, examine_device
from ray_apps.doctor.models import check_datasets, check_models, needed_bytes
from ray_apps.doctor.needs import Needs
from ray_apps.doctor.storage import check_storage
from ray_apps.doctor.versions import check_nodes_agree, check_versions, installed
from ray_apps.doctor.workers import LocalWorkers, Workers, failures
from ray_apps.machine import count_gpus, usable_cpus

START_TIMEOUT_S = 90.0
"""The first call imports torch, which on a cold disk takes its time, and wakes the GPUs."""


def examine(needs: Needs, *, wait_s: float) -> Iterator[Check]:
    """Check the cluster that `RAY_ADDRESS` names, or else this machine, one finding at a time."""
    yield from check_versions()
    if os.environ.get("RAY_ADDRESS"):
        yield from _examine_cluster(needs, wait_s)
    else:
        yield from _examine_machine(needs)


def _examine_machine(needs: Needs) -> Iterator[Check]:
    num_gpus = count_gpus()
    use_gpu = num_gpus > 0 if needs.use_gpu is None else needs.use_gpu and num_gpus > 0
    num_workers, num_cpus, check = place_workers(needs, usable_cpus(), num_gpus)
    yield check
    with LocalWorkers(num_workers) as workers:
        yield from examine_workers(needs, workers, use_gpu=use_gpu, num_threads=num_cpus)


def _examine_cluster(needs: Needs, wait_s: float) -> Iterator[Check]:
    from ray_apps.doctor.cluster import ClusterWorkers, cluster_resources, num_nodes
    from ray_apps.local_ray import local_cluster

    with ExitStack() as stack:
        stack.enter_context(local_cluster())
        resources = cluster_resources()
        use_gpu = resources["GPU"] > 0 if needs.use_gpu is None else needs.use_gpu
        num_workers = needs.num_workers or (int(resources["GPU"]) if use_gpu else max(2, num_nodes()))
        num_cpus = needs.cpus_per_worker or 1
        try:
            places = ClusterWorkers(num_workers, num_cpus=num_cpus, use_gpu=use_gpu, wait_s=wait_s)
            workers: Workers = stack.enter_context(places)
        except RunError as error:
            advice = "start those nodes, or wait longer for them with --wait"
            yield Check("devices", "workers", "problem", str(error), advice)
            return
        nodes = len(set(workers.nodes))
        found = f"{_count(num_workers, 'worker')} on {_count(nodes, 'node')} of the cluster"
        yield Check("devices", "workers", "ok", found)
        yield from examine_workers(needs, workers, use_gpu=use_gpu, num_threads=num_cpus)


def place_workers(needs: Needs, num_cpus: int, num_gpus: int) -> tuple[int, int, Check]:
    """How many workers this machine can run, CPUs for each, and whether those are as many as are needed."""
    use_gpu = num_gpus > 0 if needs.use_gpu is None else needs.use_gpu
    wanted = needs.num_workers or num_gpus or 2
    share = needs.cpus_per_worker or max(1, num_cpus // wanted)
    most = min(num_cpus // share, num_gpus) if use_gpu else num_cpus // share
    each = f"{_count(share, 'CPU')} and 1 GPU" if use_gpu else _count(share, "CPU")
    found = f"{_count(wanted, 'worker')} of {each}; here are {_count(num_cpus, 'CPU')} and {_count(num_gpus, 'GPU')}"
    fits = wanted <= most or needs.num_workers is None
    advice = "" if fits else "run it on a cluster or a larger machine, or set train.num_workers and train.use_gpu"
    check = Check("devices", "workers", "ok" if fits else "problem", found, advice)
    return (wanted if fits else max(1, min(most, num_cpus))), share, check


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def examine_workers(needs: Needs, workers: Workers, *, use_gpu: bool, num_threads: int) -> Iterator[Check]:
    """Everything that is checked on the workers themselves."""
    answers = workers.run(examine_device, use_gpu, num_threads, timeout_s=START_TIMEOUT_S)
    if told := failures(answers):
        yield Check("devices", "workers", "problem", told, "look at that worker's node first")
    by_node = {answer.node: answer.value["versions"] for answer in answers if answer.value is not None}
    yield from check_nodes_agree({platform.node(): installed()} | by_node)
    yield from check_devices(needs, workers, answers)
    size = None
    for check, found in check_models(needs, workers):
        yield check
        size = found or size
    yield from check_collectives(workers, use_gpu=use_gpu)
    yield from check_datasets(needs, workers)
    yield from check_storage(needs.writes, needed_bytes(needs, size), workers)
