"""What this machine lets this process use."""

import os


def usable_cpus() -> int:
    """Cores this process may run on, which in a container or under `taskset` are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_gpus() -> int:
    """CUDA devices this process sees."""
    import torch

    return torch.cuda.device_count()
