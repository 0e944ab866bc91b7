"""The HTTP side: what a Serve deployment runs to answer the API by asking the replicas. It needs no torch."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from ray_apps.serve.api import create_api
from ray_apps.serve.backend import ChatDelta, ChatJob
from ray_apps.serve.errors import ApiError, Failure, generation_failed, overloaded, unavailable

logger = logging.getLogger(__name__)


class ReplicaBackend:
    """The replicas, as a `ChatBackend`."""

    def __init__(self, replicas: DeploymentHandle[Any]) -> None:
        self._name = replicas.deployment_name
        self._app_name = replicas.app_name
        self._replicas = replicas.options(stream=True)

    async def chat(self, job: ChatJob) -> AsyncGenerator[ChatDelta, None]:
        """Yield the answer to `job` from one of the replicas."""
        items: Any = self._replicas.chat.remote(job)
        try:
            async for item in items:
                if isinstance(item, Failure):
                    raise ApiError(item)
                yield item
        except BackPressureError:
            raise overloaded() from None
        except RayTaskError:
            logger.exception("request %s failed in its replica", job.request_id)
            raise generation_failed() from None
        except (RayError, RayServeException) as error:
            logger.error("request %s lost its replica: %s", job.request_id, type(error).__name__)
            raise unavailable() from None
        except (asyncio.CancelledError, GeneratorExit):
            items.cancel()
            raise

    async def is_ready(self) -> bool:
        """Whether Serve has a healthy replica, however busy it is."""
        status = await asyncio.to_thread(serve.status)
        app = status.applications.get(self._app_name)
        replicas = app.deployments.get(self._name) if app else None
        return replicas is not None and any(
            state == "RUNNING" and count > 0 for state, count in replicas.replica_states.items()
        )


@serve.ingress()
class Ingress:
    """Answers HTTP for `model_name`."""

    def __init__(self, replicas: DeploymentHandle[Any], model_name: str) -> None:
        self._backend = ReplicaBackend(replicas)
        self._model_name = model_name

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app that Serve runs; it asks for it after the constructor."""
        return create_api(self._backend, self._model_name)
