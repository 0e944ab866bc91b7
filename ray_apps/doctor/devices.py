"""What each node has: processors, memory, GPUs, and how fast they multiply matrices."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from ray_apps.doctor.check import Check, Status, describe_bytes
from ray_apps.doctor.needs import Needs
from ray_apps.doctor.versions import installed
from ray_apps.doctor.workers import Answer, Workers, first_ranks
from ray_apps.machine import free_memory, matmul_gflops, memory_limit, usable_cpus

SHM = Path("/dev/shm")  # noqa: S108 - looked at, not written to
SHM_SHARE = 0.3
"""Share of memory that Ray gives to its object store, which lives in shared memory where that is large enough."""
FREE = 0.9
"""Share of a GPU's memory that is free if nothing else uses it."""
SLOW = 0.8
"""A GPU slower than this share of the median holds up all the others."""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def examine_device(rank: int, world_size: int, use_gpu: bool, num_threads: int) -> dict[str, Any]:
    """Facts about the node of a worker, and about the device it would train on. Runs in the worker."""
    import torch

    torch.set_num_threads(num_threads)
    device = torch.device("cuda", rank % torch.cuda.device_count()) if use_gpu else torch.device("cpu")
    return {
        "versions": installed(),
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if use_gpu else None,
        "driver": driver_version(_read("/proc/driver/nvidia/version")),
        "num_cpus": usable_cpus(),
        "memory_bytes": memory_limit(),
        "free_memory_bytes": free_memory(torch.device("cpu")),
        "shm_bytes": psutil.disk_usage(str(SHM)).total if SHM.is_dir() else None,
        "gpu": _describe_gpu(device) if use_gpu else None,
        "gflops": {name: matmul_gflops(device, name) for name in ("bf16", "fp32")},
    }


def driver_version(text: str) -> str | None:
    """The version in what NVIDIA's kernel module says about itself."""
    found = re.search(r"NVRM version:.*?\b(\d+\.\d+(\.\d+)?)\b", text)
    return found and found[1]


def _describe_gpu(device: Any) -> dict[str, Any]:
    """Facts about one GPU. No other is touched: each process that does takes memory of it."""
    import torch

    torch.cuda.set_device(device)
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    others = [index for index in range(torch.cuda.device_count()) if index != device.index]
    return {
        "name": properties.name,
        "memory_bytes": total,
        "free_bytes": free,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "bf16": properties.major >= 8,
        "peers": all(torch.cuda.can_device_access_peer(device, other) for other in others) if others else None,
    }


def check_devices(needs: Needs, workers: Workers, answers: Sequence[Answer]) -> list[Check]:
    """What the workers found, node by node, and how fast they are."""
    facts = {answer.rank: answer.value for answer in answers if answer.value is not None}
    checks = []
    for rank in first_ranks(workers.nodes):
        if (here := facts.get(rank)) is not None:
            node = workers.nodes[rank]
            seen = [each["gpu"] for other, each in facts.items() if workers.nodes[other] == node and each["gpu"]]
            checks += [*_check_node(node, here), *(_check_gpus(needs, node, here, seen) or _check_unused_driver(here))]
    return checks + _check_rates(needs, {answer.who: facts[answer.rank] for answer in answers if answer.rank in facts})


def _check_node(node: str, facts: dict[str, Any]) -> list[Check]:
    memory, free, shm = facts["memory_bytes"], facts["free_memory_bytes"], facts["shm_bytes"]
    measures = {"num_cpus": facts["num_cpus"], "memory_bytes": memory, "free_memory_bytes": free}
    found = f"{facts['num_cpus']} CPUs, {describe_bytes(memory)} memory of which {describe_bytes(free)} free"
    checks = [Check("devices", node, "ok", found, measures=measures)]
    if shm is None:
        return checks
    status: Status = "ok"
    advice = ""
    if shm < SHM_SHARE * memory:
        status = "warning"
        advice = (
            f"give it {describe_bytes(SHM_SHARE * memory)} (docker run --shm-size), or Ray keeps its objects on a disk "
            "and NCCL may fail to start"
        )
    return [*checks, Check("devices", str(SHM), status, describe_bytes(shm), advice, {"shm_bytes": shm})]


def _check_gpus(needs: Needs, node: str, facts: dict[str, Any], gpus: Sequence[dict[str, Any]]) -> list[Check]:
    """The GPUs that the workers of a node use, and the package that they are used best with."""
    if not gpus:
        return []
    first, free = gpus[0], min(gpu["free_bytes"] for gpu in gpus)
    peers = {True: ", direct access between them", False: ", no direct access between them", None: ""}
    found = (
        f"{len(gpus)} × {first['name']}, {describe_bytes(first['memory_bytes'])} each, at least "
        f"{describe_bytes(free)} free, compute capability {first['compute_capability']}{peers[first['peers']]}; "
        f"driver {facts['driver']}, CUDA {facts['cuda']}, NCCL {facts['nccl']}"
    )
    status, advice = _judge_gpus(needs, gpus)
    measures = {"num_gpus": len(gpus), "gpu_memory_bytes": first["memory_bytes"], "gpu_free_bytes": free}
    check = Check("devices", f"GPUs of {node}", status, found, advice, measures)
    return [check] if "flash-attn" in facts["versions"] else [check, _check_flash_attention(needs)]


def _judge_gpus(needs: Needs, gpus: Sequence[dict[str, Any]]) -> tuple[Status, str]:
    if needs.precision == "bf16" and not all(gpu["bf16"] for gpu in gpus):
        return "problem", "these GPUs have no bf16: set train.precision=fp32"
    if len({(gpu["name"], gpu["memory_bytes"]) for gpu in gpus}) > 1:
        return "warning", "the GPUs are not of one kind: the slowest sets the pace"
    if any(gpu["free_bytes"] < FREE * gpu["memory_bytes"] for gpu in gpus):
        return "warning", "something else holds memory of a GPU: nvidia-smi shows what"
    return "ok", ""


def _check_flash_attention(needs: Needs) -> Check:
    """For GPUs without it."""
    if needs.attention == "flash_attention_2":
        advice = "install it (pip install flash-attn), or set train.attention=auto"
        return Check("devices", "flash-attn", "problem", "not installed", advice)
    told = "not installed: attention is PyTorch's own, chat by chat"
    return Check("devices", "flash-attn", "warning", told, "pip install flash-attn is faster")


def _check_unused_driver(facts: dict[str, Any]) -> list[Check]:
    """A GPU driver beside a torch that cannot use it."""
    if facts["driver"] is None or facts["cuda"] is not None:
        return []
    found = f"NVIDIA driver {facts['driver']}, but torch {facts['versions'].get('torch')} is built without CUDA"
    return [Check("devices", "CUDA", "problem", found, "install the CUDA build of torch: pip install torch")]


def _check_rates(needs: Needs, facts: dict[str, dict[str, Any]]) -> list[Check]:
    if not facts:
        return []
    rates = {name: {who: each["gflops"][name] for who, each in facts.items()} for name in ("bf16", "fp32")}
    lowest = {name: min(by_worker.values()) for name, by_worker in rates.items()}
    kind = "GPU" if next(iter(facts.values()))["gpu"] else "CPU"
    found = f"bf16 {_rate(lowest['bf16'])}, fp32 {_rate(lowest['fp32'])}"
    if len(facts) > 1:
        found += f" at the slowest of {len(facts)} workers"
    status: Status = "ok"
    advice = ""
    used = needs.precision or ("bf16" if kind == "GPU" else "fp32")
    usual = median(rates[used].values())
    slow = [who for who, rate in rates[used].items() if rate < SLOW * usual]
    if kind == "GPU" and slow:  # CPUs of one machine differ by chance, from moment to moment
        status, advice = "warning", f"{', '.join(slow)} is slower than {_rate(usual)}, as most are: look for other work"
    elif needs.precision == "bf16" and lowest["bf16"] < lowest["fp32"]:
        status, advice = "warning", "bf16 is the slower one here: set train.precision=fp32"
    measures = {f"{name}_gflops": rate for name, rate in lowest.items()}
    return [Check("devices", f"matrix products on a {kind}", status, found, advice, measures)]


def _rate(gflops: float) -> str:
    return f"{gflops:,.0f} GFLOP/s" if gflops < 1e4 else f"{gflops / 1e3:,.0f} TFLOP/s"
