"""How many replicas there are, as Ray Serve tells it."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from ray import serve

_FRESH_S = 1.0


@dataclass(frozen=True, slots=True)
class Count:
    """Replicas that answer, and replicas that are being started. `has_failed`: Serve has found something wrong."""

    running: int = 0
    starting: int = 0
    has_failed: bool = False


class Census:
    """Counts the replicas of one deployment, at most once a second. Asking Serve takes a few milliseconds."""

    def __init__(self, app: str, deployment: str) -> None:
        self._app = app
        self._deployment = deployment
        self._counted_at = float("-inf")
        self._latest: Count | None = None
        self._counting: asyncio.Task[Count] | None = None

    @property
    def latest(self) -> Count | None:
        """The last count, at once; an old one is renewed meanwhile. None before the first."""
        if not self._is_fresh:
            self._count_anew()
        return self._latest

    async def count(self) -> Count:
        """The count of this moment, or one that is not a second old."""
        if self._latest is None or not self._is_fresh:
            return await asyncio.shield(self._count_anew())
        return self._latest

    @property
    def _is_fresh(self) -> bool:
        return time.monotonic() - self._counted_at < _FRESH_S

    def _count_anew(self) -> asyncio.Task[Count]:
        if self._counting is None or self._counting.done():
            self._counting = asyncio.create_task(self._ask())
        return self._counting

    async def _ask(self) -> Count:
        status = await asyncio.to_thread(serve.status)
        app = status.applications.get(self._app)
        deployment = app.deployments.get(self._deployment) if app else None
        states: Any = deployment.replica_states if deployment else {}
        running = sum(states.get(state, 0) for state in ("RUNNING", "PENDING_MIGRATION"))
        has_failed = deployment is None or deployment.status in ("UNHEALTHY", "DEPLOY_FAILED")
        self._latest = Count(running, states.get("STARTING", 0), has_failed)
        self._counted_at = time.monotonic()
        return self._latest
