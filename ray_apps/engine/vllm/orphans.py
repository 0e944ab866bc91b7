"""vLLM's processes end with the one that started them, however that ends.

vLLM itself sees to it only when it is shut down: after a SIGKILL its core would keep the model's memory for good.
This is one of vLLM's general plugins, which it calls in each of its processes.
"""

import os
import signal
import threading
import time

import psutil

OWNER = "VICUNA_VLLM_OWNER"
"""The environment variable with the process that ours started vLLM in."""
_PERIOD_S = 1.0


def follow_owner() -> None:
    """Watch the owner from a thread, in a process below it."""
    owner = int(os.environ.get(OWNER, 0))
    if owner not in (0, os.getpid()):
        threading.Thread(target=_end_with, args=(owner,), name="follow-owner", daemon=True).start()


def _end_with(owner: int) -> None:
    while psutil.pid_exists(owner):
        time.sleep(_PERIOD_S)
    os.kill(os.getpid(), signal.SIGKILL)
