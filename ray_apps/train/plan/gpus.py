"""What GPUs can do, from their makers' datasheets."""

from dataclasses import dataclass

from data_prep.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """`memory_gib`: as sold. `peak_tflops`: dense bf16 (fp16 where a GPU has no bf16) on tensor cores, with fp32 sums.

    `link_gb_per_s`: to the other GPUs of a machine, one way: NVLink where there is one, else PCIe × 16.
    """

    memory_gib: int
    peak_tflops: float
    link_gb_per_s: float

    @property
    def memory_bytes(self) -> int:
        """Memory as sold; a driver shows up to a few percent less."""
        return self.memory_gib * 2**30


GPUS = {
    "a100-40g": Gpu(40, 312.0, 300.0),
    "a100-80g": Gpu(80, 312.0, 300.0),
    "a800-80g": Gpu(80, 312.0, 200.0),
    "h100-80g": Gpu(80, 989.4, 450.0),
    "h200-141g": Gpu(141, 989.4, 450.0),
    "l4": Gpu(24, 121.0, 32.0),
    "l40s": Gpu(48, 362.05, 32.0),
    "a10g": Gpu(24, 70.0, 32.0),
    "t4": Gpu(16, 65.0, 16.0),
    "v100-16g": Gpu(16, 125.0, 150.0),
    "v100-32g": Gpu(32, 125.0, 150.0),
    "rtx3090": Gpu(24, 71.0, 32.0),
    "rtx4090": Gpu(24, 165.2, 32.0),
}
"""NVIDIA's datasheets of A100, H100 SXM, H200, L4, L40S, A10G, T4 and V100 SXM2, and its GA102 and Ada whitepapers.

Where a datasheet gives the rate with sparsity, this is half of it. A800 is an A100 with NVLink at 400 instead of
600 GB/s, both ways together.
"""


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`.

    Raises:
        ConfigError: it is not known; the message lists those that are.
    """
    if name.lower() not in GPUS:
        raise ConfigError(f"--gpu: {name!r} is not known; valid: {', '.join(GPUS)}")
    return GPUS[name.lower()]
