from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from ray_apps.doctor.check import Check
from ray_apps.doctor.devices import check_devices, driver_version, examine_device
from ray_apps.doctor.needs import MACHINE, Needs
from ray_apps.doctor.workers import Answer, LocalWorkers
from ray_apps.machine import matmul_gflops, memory_limit

GB = 10**9
A100 = {
    "name": "NVIDIA A100",
    "memory_bytes": 40 * GB,
    "free_bytes": 39 * GB,
    "compute_capability": "8.0",
    "bf16": True,
    "peers": None,
}
NODE: dict[str, Any] = {
    "versions": {"torch": "2.13.0+cu130", "flash-attn": "2.8.3"},
    "cuda": "13.0",
    "nccl": "2.27.5",
    "driver": "580.95.05",
    "num_cpus": 96,
    "memory_bytes": 1000 * GB,
    "free_memory_bytes": 900 * GB,
    "shm_bytes": 400 * GB,
    "gpu": A100,
    "gflops": {"bf16": 250_000.0, "fp32": 19_000.0},
}


def checks(*facts: dict[str, Any], needs: Needs = MACHINE, num_nodes: int = 1) -> dict[str, Check]:
    """The checks by name, for workers that found `facts`, in turn on `num_nodes` nodes."""
    workers = LocalWorkers(len(facts))
    workers.nodes = [f"node-{rank % num_nodes}" for rank in range(len(facts))]
    answers = [Answer(rank, workers.nodes[rank], value) for rank, value in enumerate(facts)]
    return {check.name: check for check in check_devices(needs, workers, answers)}


def test_this_machine_is_examined() -> None:
    facts = examine_device(0, 1, False, torch.get_num_threads())
    found = checks(facts)
    assert found["node-0"].measures["num_cpus"] >= 1
    assert 0 < found["node-0"].measures["free_memory_bytes"] <= found["node-0"].measures["memory_bytes"]
    assert found["matrix products on a CPU"].measures["fp32_gflops"] > 0


def test_a_container_s_memory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    monkeypatch.setattr("ray_apps.machine.CGROUP_LIMITS", (str(tmp_path / "memory.max"), "/nowhere"))
    assert memory_limit() == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit() == psutil.virtual_memory().total


def test_a_rate_is_a_rate() -> None:
    assert 0 < matmul_gflops(torch.device("cpu"), "fp32", budget_s=0.01) < 1e6


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build", "580.95.05"),
        ("", None),
    ],
)
def test_the_driver_says_its_version(text: str, version: str | None) -> None:
    assert driver_version(text) == version


def test_gpus_of_a_node_are_those_of_its_workers() -> None:
    told = "2 × NVIDIA A100, 40 GB each, at least 39 GB free, compute capability 8.0"
    assert checks(NODE, NODE)["GPUs of node-0"].found.startswith(told)
    whole = {**NODE, "gpu": {**A100, "peers": True}}
    found = checks(whole, whole)["GPUs of node-0"]
    assert found.found == f"{told}, direct access between them; driver 580.95.05, CUDA 13.0, NCCL 2.27.5"
    assert found.status == "ok"
    assert checks(NODE, NODE, num_nodes=2)["GPUs of node-1"].measures["num_gpus"] == 1


@pytest.mark.parametrize(
    ("change", "needs", "name", "status"),
    [
        ({"gpu": {**A100, "bf16": False}}, Needs(precision="bf16"), "GPUs of node-0", "problem"),
        ({"gpu": {**A100, "bf16": False}}, Needs(precision="fp32"), "GPUs of node-0", "ok"),
        ({"gpu": {**A100, "free_bytes": 20 * GB}}, MACHINE, "GPUs of node-0", "warning"),
        ({"versions": {}}, Needs(attention="flash_attention_2"), "flash-attn", "problem"),
        ({"versions": {}}, Needs(attention="auto"), "flash-attn", "warning"),
        ({"gpu": None, "cuda": None}, MACHINE, "CUDA", "problem"),
        ({"shm_bytes": 64_000_000}, MACHINE, "/dev/shm", "warning"),
        ({"gflops": {"bf16": 1.0, "fp32": 100.0}}, Needs(precision="bf16"), "matrix products on a GPU", "warning"),
        ({"gflops": {"bf16": 1.0, "fp32": 100.0}}, Needs(precision="fp32"), "matrix products on a GPU", "ok"),
    ],
)
def test_what_a_node_lacks_is_told_with_what_to_do(
    change: dict[str, Any], needs: Needs, name: str, status: str
) -> None:
    check = checks({**NODE, **change}, needs=needs)[name]
    assert check.status == status
    assert bool(check.advice) == (status != "ok")


def test_gpus_of_different_kinds_are_told() -> None:
    check = checks(NODE, {**NODE, "gpu": {**A100, "name": "NVIDIA T4"}})["GPUs of node-0"]
    assert check.status == "warning"
    assert check.advice.startswith("the GPUs are not of one kind")


@pytest.mark.gpu
def test_a_gpu_is_examined() -> None:
    facts = examine_device(0, 1, True, 1)
    found = checks(facts)
    assert found["GPUs of node-0"].measures["num_gpus"] == 1
    assert all((facts["driver"], facts["nccl"]))
    assert found["matrix products on a GPU"].measures["fp32_gflops"] > 100


def test_a_slow_device_is_named() -> None:
    slow = {**NODE, "gflops": {"bf16": 100_000.0, "fp32": 19_000.0}}
    check = checks(NODE, NODE, slow, NODE, needs=replace(MACHINE, precision="bf16"))["matrix products on a GPU"]
    assert check.found == "bf16 100 TFLOP/s, fp32 19 TFLOP/s at the slowest of 4 workers"
    assert check.advice.startswith("rank 2 (node-0) is slower than 250 TFLOP/s")
