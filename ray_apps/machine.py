"""What this machine lets this process use."""

import os
import platform
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
MATMUL_S = 0.3
"""About how long one rate is measured."""
LARGEST_MATRIX = 8192


def usable_cpus() -> int:
    """Cores this process may run on, which in a container or under `taskset` are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_gpus() -> int:
    """CUDA devices this process sees."""
    import torch

    return torch.cuda.device_count()


def gpu_memory() -> int | None:
    """Bytes of the first CUDA device, if there is one."""
    import torch

    return int(torch.cuda.mem_get_info(0)[1]) if torch.cuda.is_available() else None


def device_name(device: Any) -> str:
    """The model of a GPU or, for the CPU, of the processor."""
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def peak_memory(device: Any) -> int:
    """Most bytes that this process has held on `device` at any time."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_limit() -> int:
    """Bytes that processes here may use: the machine's, or the container's where that is less."""
    limits = [psutil.virtual_memory().total]
    for path in map(Path, CGROUP_LIMITS):
        with suppress(OSError):
            limits += [int(text)] if (text := path.read_text().strip()).isdigit() else []
    return min(limits)


def free_memory(device: Any) -> int:
    """Bytes of `device` that a process can still take."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(psutil.virtual_memory().available, memory_limit())


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
