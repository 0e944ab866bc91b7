"""The HTTP side: what a Serve deployment runs to answer the API by asking the replicas. It needs no torch."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve import metrics
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from ray_apps.serve.api import create_api
from ray_apps.serve.auth import load_keys
from ray_apps.serve.config import ServeArgs
from ray_apps.serve.errors import ApiError, Failure, generation_failed, overloaded, unavailable
from ray_apps.serve.guards import guarded
from ray_apps.serve.jobs import Delta, EmbeddingJob, Embeddings, Job, TokenizeJob, Tokens
from ray_apps.serve.metered import MeteredBackend
from ray_apps.serve.metrics import RequestMetrics
from ray_apps.serve.request_log import open_log
from ray_apps.serve.routing import ServedModel

logger = logging.getLogger(__name__)


class ReplicaBackend:
    """The replicas of one model, as a `Backend`."""

    def __init__(self, replicas: DeploymentHandle[Any]) -> None:
        self._name = replicas.deployment_name
        self._app_name = replicas.app_name
        self._replicas = replicas
        self._streams = replicas.options(stream=True)

    async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        """Yield the answers to `job` from one of the replicas."""
        streams = self._streams.options(multiplexed_model_id=job.adapter) if job.adapter else self._streams
        items: Any = streams.generate.remote(job)
        with _translated(job.request_id):
            try:
                async for item in items:
                    yield _checked(item)
            except (asyncio.CancelledError, GeneratorExit):
                items.cancel()
                raise

    async def embed(self, job: EmbeddingJob) -> Embeddings:
        """Embed the texts on one of the replicas."""
        with _translated(job.request_id):
            found: Embeddings = _checked(await self._replicas.embed.remote(job))
            return found

    async def tokenize(self, job: TokenizeJob) -> Tokens:
        """The ids of the prompt."""
        with _translated("tokenize"):
            found: Tokens = _checked(await self._replicas.tokenize.remote(job))
            return found

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """The text of ids."""
        with _translated("detokenize"):
            found: str = _checked(await self._replicas.detokenize.remote(token_ids))
            return found

    async def is_ready(self) -> bool:
        """Whether Serve has a healthy replica, however busy it is."""
        status = await asyncio.to_thread(serve.status)
        app = status.applications.get(self._app_name)
        replicas = app.deployments.get(self._name) if app else None
        return replicas is not None and any(
            state == "RUNNING" and count > 0 for state, count in replicas.replica_states.items()
        )


def _checked(item: Any) -> Any:
    """What a replica gave back, unless it is an error."""
    if isinstance(item, Failure):
        raise ApiError(item)
    return item


@contextmanager
def _translated(request_id: str) -> Iterator[None]:
    """Whatever may happen on the way to a replica and back, as an `ApiError`."""
    try:
        yield
    except BackPressureError:
        raise overloaded() from None
    except RayTaskError:
        logger.exception("request %s failed in its replica", request_id)
        raise generation_failed() from None
    except (RayError, RayServeException) as error:
        logger.error("request %s lost its replica: %s", request_id, type(error).__name__)
        raise unavailable() from None


@serve.ingress()
class Ingress:
    """Answers HTTP for the models of `args`, each of which has `replicas` under its name.

    API keys are read here, where they are needed, and are never part of `args`, which Serve shows.
    """

    def __init__(self, args: ServeArgs, replicas: dict[str, DeploymentHandle[Any]]) -> None:
        self._args = args
        self._keys = load_keys(args.security.api_keys_file)
        if not self._keys:
            whom = "anybody" if args.security.allow_open else "this machine alone"
            logger.warning("no API key is configured: answering %s; see VICUNA_API_KEYS", whom)
        self._write_line = open_log(args.logging.requests) if args.logging.requests else None
        self._metrics = RequestMetrics(metrics)
        self._models = [
            ServedModel(
                model.served_name,
                MeteredBackend(
                    ReplicaBackend(replicas[model.served_name]),
                    model.served_name,
                    limits=args.limits,
                    metrics=self._metrics,
                    with_texts=args.logging.texts,
                ),
                tuple(model.aliases),
                tuple(model.adapters),
            )
            for model in args.all_models
        ]

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The app that Serve runs; it asks for it after the constructor. Serve's proxy names the requests."""
        return guarded(
            create_api(self._models),
            self._keys,
            self._args.security,
            self._args.limits,
            write_line=self._write_line,
            with_texts=self._args.logging.texts,
            metrics=self._metrics,
            names_requests=False,
        )
