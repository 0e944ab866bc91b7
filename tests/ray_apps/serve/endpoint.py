"""An endpoint on Ray Serve in a test: started with any kind of replica, asked by many clients at a time."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import httpx
import pytest
import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.util.state import list_actors

from ray_apps.engine.fake import FakeEngine
from ray_apps.engine.protocol import EngineStats
from ray_apps.local_ray import local_cluster
from ray_apps.serve.app import choose_resources, compose
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.config import ModelArgs, ServeArgs, resolve_models
from ray_apps.serve.config_file import HttpOptions
from ray_apps.serve.environment import VARIABLES
from ray_apps.serve.replica import Replica
from ray_apps.serve.run import choose_port, wait_until_ready

APP = "test"


class Watched(Replica):
    """A replica that tells what its engine does."""

    async def stats(self) -> EngineStats:
        return self._engine.stats()


class Slow(Watched):
    """Echoes, 50 characters a second."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self._engine = FakeEngine(max_model_len=1_000_000, pause_s=0.02)
        self._backend = EngineBackend(self._engine)


@dataclass
class Told:
    """What a client was told: the status, the text of the answer, the error if there was one, and whether it ended."""

    status: int
    text: str = ""
    error: dict[str, Any] | None = None
    is_done: bool = False
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def num_cached(self) -> int:
        return self.usage["prompt_tokens_details"]["cached_tokens"]


class Endpoint:
    """Serves the model called `model` at `url`."""

    def __init__(self, url: str, model: str) -> None:
        self.url = url
        self.model = model
        self.client = httpx.Client(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None))

    def body(self, *messages: str, **fields: Any) -> dict[str, Any]:
        roles = ("user", "assistant")
        chat = [{"role": roles[number % 2], "content": text} for number, text in enumerate(messages)]
        return {"model": self.model, "messages": chat, "temperature": 0, **fields}

    def ask(self, *messages: str, headers: dict[str, str] | None = None, **fields: Any) -> Told:
        response = self.client.post("/v1/chat/completions", json=self.body(*messages, **fields), headers=headers or {})
        body = response.json()
        if response.status_code != 200:
            return Told(response.status_code, error=body["error"])
        return Told(200, body["choices"][0]["message"]["content"], is_done=True, usage=body["usage"])

    def stream(
        self, *messages: str, headers: dict[str, str] | None = None, began: Event | None = None, **fields: Any
    ) -> Told:
        """`began` is set once a piece of the answer is there."""
        body = self.body(*messages, stream=True, **fields)
        with self.client.stream("POST", "/v1/chat/completions", json=body, headers=headers or {}) as response:
            told = Told(response.status_code)
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    told.is_done = True
                elif line:
                    read_chunk(json.loads(line.removeprefix("data: ")), told)
                    if began:
                        began.set()
        return told

    def all_stats(self) -> list[EngineStats]:
        """Of every replica."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return serve.get_deployment_handle(self.model, APP).broadcast("stats").results()
            except RayActorError:  # this process has not heard yet that it is gone
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def replicas(self) -> list[Any]:
        """Ray's descriptions of the replicas' actors."""
        return actors(f"{APP}#{self.model}#")

    def replica_states(self) -> Counter[str]:
        deployment = serve.status().applications[APP].deployments[self.model]
        return Counter({str(getattr(state, "value", state)): n for state, n in deployment.replica_states.items() if n})


def actors(name: str) -> list[Any]:
    """Ray's descriptions of those that live and have `name` in theirs."""
    address = ray.get_runtime_context().gcs_address  # there may be other clusters
    alive = list_actors(address, filters=[("state", "=", "ALIVE")], limit=1000)
    return [actor for actor in alive if name in (actor.name or "")]


def read_chunk(chunk: dict[str, Any], told: Told) -> None:
    if "error" in chunk:
        told.error = chunk["error"]
    elif chunk["choices"]:
        told.text += chunk["choices"][0]["delta"].get("content") or ""


@contextmanager
def serve_environment(**variables: str) -> Iterator[None]:
    """Within the block Ray is started as `vicuna serve` starts it, but for `variables`."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**VARIABLES, **variables}.items():
            patch.setenv(name, value)
        yield


@contextmanager
def serve_cluster(num_cpus: int, **variables: str) -> Iterator[None]:
    """Ray on this machine, started as `vicuna serve` starts it, but for `variables`."""
    with serve_environment(**variables), local_cluster(num_cpus=num_cpus):
        yield


def start_serve() -> str:
    """Start Serve on the cluster that is up, with which it ends; where it listens."""
    options = choose_port(HttpOptions(port=0))
    serve.start(http_options=options.model_dump())
    return f"http://127.0.0.1:{options.port}"


@contextmanager
def serving(url: str, kind: type[Replica] = Watched, **args: Any) -> Iterator[Endpoint]:
    """An endpoint of one model called `m`, by the Serve that listens at `url`."""
    try:
        deploy(kind, **args)
        wait_until_ready(url)
        endpoint = Endpoint(url, "m")
        with endpoint.client:
            yield endpoint
    finally:
        serve.delete(APP)


def deploy(kind: type[Replica] = Watched, **args: Any) -> None:
    """Start the model, or change it."""
    settings = choose_resources(resolve_models(ServeArgs(model_name="m", **args)))
    serve.run(compose(settings, kind), name=APP)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return once it holds, which must be soon."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def at_once(number: int) -> ThreadPoolExecutor:
    """So many clients."""
    return ThreadPoolExecutor(number)
