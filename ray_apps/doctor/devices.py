"""What each node has: processors, memory, GPUs, and how fast they multiply matrices."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from ray_apps.doctor.check import Check, Status, gigabytes
from ray_apps.doctor.needs import Needs
from ray_apps.doctor.versions import installed
from ray_apps.doctor.workers import Answer, Workers, first_ranks
from ray_apps.machine import usable_cpus

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
SHM = Path("/dev/shm")  # noqa: S108 - looked at, not written to
SHM_SHARE = 0.3
"""Share of memory that Ray gives to its object store, which lives in shared memory where that is large enough."""
MATMUL_S = 0.3
"""About how long one rate is measured."""
LARGEST_MATRIX = 8192
SLOW = 0.8
"""A device slower than this share of the median holds up all the others."""


def memory_limit() -> int:
    """Bytes that processes here may use: the machine's, or the container's where that is less."""
    limits = [int(text) for path in CGROUP_LIMITS if (text := _read(path)).isdigit()]
    return min([psutil.virtual_memory().total, *limits])


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def examine_device(rank: int, world_size: int, use_gpu: bool, num_threads: int) -> dict[str, Any]:
    """Facts about the node of a worker, and about the device it would train on. Runs in the worker."""
    import torch

    torch.set_num_threads(num_threads)
    gpus = [_describe_gpu(index) for index in range(torch.cuda.device_count())] if use_gpu else []
    device = torch.device("cuda", rank % len(gpus)) if gpus else torch.device("cpu")
    return {
        "versions": installed(),
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if gpus else None,
        "driver": driver_version(_read("/proc/driver/nvidia/version")),
        "num_cpus": usable_cpus(),
        "memory_bytes": memory_limit(),
        "free_memory_bytes": min(psutil.virtual_memory().available, memory_limit()),
        "shm_bytes": psutil.disk_usage(str(SHM)).total if SHM.is_dir() else None,
        "gpus": gpus,
        "peers": _peers(len(gpus)),
        "gflops": {name: matmul_gflops(device, name) for name in ("bf16", "fp32")},
    }


def driver_version(text: str) -> str | None:
    """The version in what NVIDIA's kernel module says about itself."""
    found = re.search(r"NVRM version:.*?\b(\d+\.\d+(\.\d+)?)\b", text)
    return found and found[1]


def _describe_gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "name": properties.name,
        "memory_bytes": total,
        "free_bytes": free,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "bf16": properties.major >= 8,
    }


def _peers(num_gpus: int) -> bool | None:
    """Whether every GPU reads every other's memory; None where fewer than two are seen."""
    import torch

    pairs = [(one, other) for one in range(num_gpus) for other in range(num_gpus) if one != other]
    return all(torch.cuda.can_device_access_peer(one, other) for one, other in pairs) if pairs else None


def matmul_gflops(device: Any, precision: str, budget_s: float = MATMUL_S) -> float:
    """Rate of a square matrix product, the largest that the time allows; 10⁹ floating-point operations a second."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size, seconds = 128, 0.0
    while size < LARGEST_MATRIX and 3 * 8 * seconds < budget_s:  # the next takes eight times as long, and runs thrice
        size *= 2
        matrix = torch.rand(size, size, dtype=dtype, device=device)
        seconds = min(_time_product(matrix) for _ in range(3))
    return 2 * size**3 / seconds / 1e9


def _time_product(matrix: Any) -> float:
    import torch

    started = time.perf_counter()
    torch.matmul(matrix, matrix)
    if matrix.is_cuda:
        torch.cuda.synchronize(matrix.device)
    return time.perf_counter() - started


def check_devices(needs: Needs, workers: Workers, answers: Sequence[Answer]) -> list[Check]:
    """What the workers found, node by node, and how fast they are."""
    facts = {answer.rank: answer.value for answer in answers if answer.value is not None}
    checks = []
    for rank in first_ranks(workers.nodes):
        if rank in facts:
            node, here = workers.nodes[rank], facts[rank]
            gpus = [gpu for other, seen in facts.items() if workers.nodes[other] == node for gpu in seen["gpus"][:1]]
            checks += _check_node(needs, node, here)
            checks += _check_gpus(needs, node, here, here["gpus"] if len(here["gpus"]) > 1 else gpus)
    return checks + _check_rates(needs, {answer.who: facts[answer.rank] for answer in answers if answer.rank in facts})


def _check_node(needs: Needs, node: str, facts: dict[str, Any]) -> list[Check]:
    memory, free, shm = facts["memory_bytes"], facts["free_memory_bytes"], facts["shm_bytes"]
    measures = {"num_cpus": facts["num_cpus"], "memory_bytes": memory, "free_memory_bytes": free}
    found = f"{facts['num_cpus']} CPUs, {gigabytes(memory)} memory of which {gigabytes(free)} free"
    checks = [Check("devices", node, "ok", found, measures=measures)]
    if shm is None:
        return checks
    small = shm < SHM_SHARE * memory
    advice = (
        f"give it {gigabytes(SHM_SHARE * memory)} (docker run --shm-size), or Ray keeps its objects on a disk and "
        "NCCL may fail to start"
    )
    status: Status = "warning" if small else "ok"
    advice = advice if small else ""
    return [*checks, Check("devices", str(SHM), status, gigabytes(shm), advice, {"shm_bytes": shm})]


def _check_gpus(needs: Needs, node: str, facts: dict[str, Any], gpus: Sequence[dict[str, Any]]) -> list[Check]:
    if not gpus:
        return _check_unused_driver(facts)
    first, free = gpus[0], min(gpu["free_bytes"] for gpu in gpus)
    peers = {True: ", direct access between them", False: ", no direct access between them", None: ""}[facts["peers"]]
    found = (
        f"{len(gpus)} × {first['name']}, {gigabytes(first['memory_bytes'])} each, at least {gigabytes(free)} free, "
        f"compute capability {first['compute_capability']}{peers}; driver {facts['driver']}, CUDA {facts['cuda']}, "
        f"NCCL {facts['nccl']}"
    )
    status: Status = "ok"
    advice = ""
    if needs.precision == "bf16" and not all(gpu["bf16"] for gpu in gpus):
        status, advice = "problem", "these GPUs have no bf16: set train.precision=fp32"
    elif len({(gpu["name"], gpu["memory_bytes"]) for gpu in gpus}) > 1:
        status, advice = "warning", "the GPUs are not of one kind: the slowest sets the pace"
    elif any(gpu["free_bytes"] < 0.9 * gpu["memory_bytes"] for gpu in gpus):
        status, advice = "warning", "something else holds memory of a GPU: nvidia-smi shows what"
    measures = {"num_gpus": len(gpus), "gpu_memory_bytes": first["memory_bytes"], "gpu_free_bytes": free}
    checks = [Check("devices", f"GPUs of {node}", status, found, advice, measures)]
    if "flash-attn" in facts["versions"]:
        return checks
    if needs.attention == "flash_attention_2":
        advice = "install it (pip install flash-attn), or set train.attention=auto"
        return [*checks, Check("devices", "flash-attn", "problem", "not installed", advice)]
    told = "not installed: attention is PyTorch's own, chat by chat"
    return [*checks, Check("devices", "flash-attn", "warning", told, "pip install flash-attn is faster")]


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
    kind = "GPU" if next(iter(facts.values()))["gpus"] else "CPU"
    found = f"bf16 {_rate(lowest['bf16'])}, fp32 {_rate(lowest['fp32'])}"
    if len(facts) > 1:
        found += f" at the slowest of {len(facts)} workers"
    status: Status = "ok"
    advice = ""
    used = needs.precision or ("bf16" if kind == "GPU" else "fp32")
    usual = median(rates[used].values())
    if slow := [who for who, rate in rates[used].items() if rate < SLOW * usual]:
        status, advice = "warning", f"{', '.join(slow)} is slower than {_rate(usual)}, as most are: look for other work"
    elif needs.precision == "bf16" and lowest["bf16"] < lowest["fp32"]:
        status, advice = "warning", "bf16 is the slower one here: set train.precision=fp32"
    measures = {f"{name}_gflops": rate for name, rate in lowest.items()}
    return [Check("devices", f"matrix products on a {kind}", status, found, advice, measures)]


def _rate(gflops: float) -> str:
    return f"{gflops:,.0f} GFLOP/s" if gflops < 1e4 else f"{gflops / 1e3:,.0f} TFLOP/s"
