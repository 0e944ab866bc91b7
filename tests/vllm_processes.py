"""The processes that vLLM has below one of ours."""

import os
from collections.abc import Iterator

import psutil


def vllm_processes(kind: str = "", *, below: int | None = None) -> Iterator[psutil.Process]:
    """Those that live, by default below this process; `kind`: `EngineCore` or `Worker`."""
    for process in psutil.Process(below or os.getpid()).children(recursive=True):
        try:
            if f"VLLM::{kind}" in " ".join(process.cmdline()):
                yield process
        except psutil.Error:  # It has ended, or is ending.
            continue
