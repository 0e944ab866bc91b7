"""How soon a replica that the load asks for is there: the first of a model that sleeps, and a second. Prints JSON.

python -m benchmarks.support.scale_up MODEL MAX_MODEL_LEN SEED
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.support.load import ask
from benchmarks.support.prompts import Prompts
from ray_apps.serve import environment

environment.export()  # Serve reads some of it when it is imported.

from ray import serve  # noqa: E402

from ray_apps.local_ray import local_cluster  # noqa: E402
from ray_apps.serve.config_file import ServeFile  # noqa: E402
from ray_apps.serve.run import serving  # noqa: E402

PROMPTLY = {"upscale_delay_s": 0, "look_back_period_s": 2}
"""The policy's own delays are settings; what is measured is all that comes on top."""
NUM_PLACES, NUM_CLIENTS = 4, 8
LIMIT_S = 120.0


def file(model: str, max_model_len: int, autoscaling: Mapping[str, float]) -> ServeFile:
    """The model on replicas with few places, so that few clients are a load."""
    args = {"model": model, "model_name": "model", "max_model_len": max_model_len, "autoscaling": autoscaling}
    application = {"import_path": "ray_apps.serve.app:build_app", "args": {**args, "max_ongoing_requests": NUM_PLACES}}
    return ServeFile.parse({"http_options": {"port": 0}, "applications": [application]})


def from_none_s(served: ServeFile, body: Mapping[str, Any]) -> float:
    """Seconds from a request to a model without replicas until the first token of its answer."""
    with serving(served) as url:
        return asyncio.run(ask(f"{url}/v1", body)).ttft


def second_s(served: ServeFile, bodies: list[Mapping[str, Any]]) -> float:
    """Seconds from the start of a load that is too much for one replica until Serve counts a second as running.

    Requests go there as soon as the ingress hears of it.
    """
    with serving(served) as url:
        return asyncio.run(_until_two(served.application.name, f"{url}/v1", bodies))


async def _until_two(app: str, url: str, bodies: list[Mapping[str, Any]]) -> float:
    started = time.perf_counter()
    clients = [asyncio.create_task(ask(url, body)) for body in bodies]
    try:
        while await asyncio.to_thread(_num_running, app) < 2:
            for ended in (client for client in clients if client.done()):
                ended.result()
            if all(client.done() for client in clients):
                raise RuntimeError("the load was over before there was a second replica")
            if time.perf_counter() - started > LIMIT_S:
                raise RuntimeError(f"there is no second replica after {LIMIT_S:.0f} s")
            await asyncio.sleep(0.05)
        return time.perf_counter() - started
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


def _num_running(app: str) -> int:
    states: Mapping[Any, int] = serve.status().applications[app].deployments["model"].replica_states
    return states.get("RUNNING", 0)


def main() -> None:
    model, max_model_len, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    prompts = Prompts(Path(model), seed)
    bodies = [
        {"model": "model", "messages": chat, "max_tokens": 900, "temperature": 0}
        for chat in islice(prompts.chats(50), NUM_CLIENTS + 1)
    ]
    sleeping = file(model, max_model_len, {"min_replicas": 0, "max_replicas": 1, **PROMPTLY})
    single = file(model, max_model_len, {"min_replicas": 1, "max_replicas": 2, **PROMPTLY})
    with local_cluster(num_cpus=4):
        seconds = {"from_none_s": from_none_s(sleeping, {**bodies[0], "max_tokens": 1})}
        print(json.dumps(seconds), flush=True)
        print(json.dumps({**seconds, "second_s": second_s(single, bodies[1:])}))


if __name__ == "__main__":
    main()
