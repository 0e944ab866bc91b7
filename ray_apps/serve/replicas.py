"""The replicas of one model, as a `Backend`: who may wait for one, how long, and what happens when one is lost."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from ray_apps.serve.admission import Admission
from ray_apps.serve.census import Census
from ray_apps.serve.errors import (
    ApiError,
    Failure,
    answer_lost,
    generation_failed,
    queued_too_long,
    unavailable,
)
from ray_apps.serve.jobs import (
    Counted,
    Delta,
    EmbeddingJob,
    Embeddings,
    Job,
    ModelState,
    Started,
    TokenizeJob,
    Tokens,
)
from ray_apps.serve.record import current_request

logger = logging.getLogger(__name__)

MAX_TRIES = 3
"""How many replicas a request may be given to. One that was lost with each of them may well have been the reason."""


class ReplicaLostError(Exception):
    """The replica ended before its answer did."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Answers a replica works on at a time, those that may wait beyond these, and for how many seconds.

    `max_replicas`: how many there may be. `may_sleep`: whether there may be none until somebody asks.
    """

    max_ongoing: int
    max_queued: int
    max_replicas: int
    timeout_s: float | None = None
    may_sleep: bool = False


@dataclass(frozen=True, slots=True)
class _Call:
    """A method of a replica and what it is given. `session`, `adapter`: by which a replica is chosen, if by any.

    `streams`: whether the client is told each piece as it comes. `num_answers`: places that it takes.
    """

    method: str
    argument: Any
    session: str = ""
    adapter: str = ""
    streams: bool = False
    num_answers: int = 1


class ReplicaBackend:
    """Does jobs with whichever replica has room. There is one of these per model, so its limits are the model's."""

    def __init__(self, replicas: DeploymentHandle[Any], limits: QueueLimits) -> None:
        # By Ray's own way, whatever else of Serve talks by gRPC: it knows at once when a node is lost.
        self._replicas = replicas.options(stream=True, _by_reference=True)
        self._limits = limits
        self._census = Census(replicas.app_name, replicas.deployment_name)
        self._admission = Admission()
        self.num_waiting = 0
        """Requests that no replica has taken on yet."""

    async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        """Yield the answers to `job`."""
        num_answers = job.num_answers * len(job.prompts)
        call = _Call("generate", job, job.session, job.adapter or "", streams=job.streams, num_answers=num_answers)
        async with aclosing(self._admitted(call)) as deltas:
            async for delta in deltas:
                yield delta

    async def embed(self, job: EmbeddingJob) -> Embeddings:
        """Embed the texts."""
        found: Embeddings = await self._one(_Call("embed", job, num_answers=len(job.prompts)))
        return found

    async def tokenize(self, job: TokenizeJob) -> Tokens:
        """The ids of the prompt."""
        found: Tokens = await self._one(_Call("tokenize", job))
        return found

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """The text of ids."""
        found: str = await self._one(_Call("detokenize", token_ids))
        return found

    async def state(self) -> ModelState:
        """What Serve says of the replicas, however busy they are."""
        count = await self._census.count()
        if count.running:
            return "ready"
        if count.starting:
            return "waking" if self._limits.may_sleep else "starting"
        return "asleep" if self._limits.may_sleep and not count.has_failed else "unavailable"

    async def _one(self, call: _Call) -> Any:
        async with aclosing(self._admitted(call)) as items:
            return await anext(items)

    async def _admitted(self, call: _Call) -> AsyncGenerator[Any, None]:
        """What a replica yields, unless too many wait already."""
        with self._admission.admitted(call.num_answers, self._room()):
            async with aclosing(self._retried(call)) as items:
                async for item in items:
                    yield item

    def _room(self) -> int:
        """How many answers there may be at a time."""
        count = self._census.latest
        num_replicas = self._limits.max_replicas if count is None else count.running
        return num_replicas * self._limits.max_ongoing + self._limits.max_queued

    async def _retried(self, call: _Call) -> AsyncGenerator[Any, None]:
        """Ask another replica when one is lost, as long as the client has been told nothing."""
        for tries_left in reversed(range(MAX_TRIES)):
            has_told = False
            items = self._ask(call)
            try:
                async with aclosing(items if call.streams else _whole(items)) as told:
                    async for item in told:
                        has_told = True
                        yield item
                return
            except ReplicaLostError as loss:
                logger.warning("request %s lost its replica: %s", current_request().request_id, loss)
                if has_told:
                    raise answer_lost() from None
                if not tries_left:
                    raise unavailable() from None

    async def _ask(self, call: _Call) -> AsyncGenerator[Any, None]:
        """What one replica yields.

        Raises:
            ReplicaLostError: it is gone, or its engine is.
            ApiError: it cannot answer, or none had room in time.
        """
        replicas = self._replicas.options(session_id=call.session, multiplexed_model_id=call.adapter)
        items: Any = getattr(replicas, call.method).remote(call.argument)
        try:
            await self._wait_for_turn(items)
            async for item in items:
                if isinstance(item, Failure):
                    raise ReplicaLostError(item.message) if item.is_of_replica else ApiError(item)
                if isinstance(item, Counted):
                    current_request().num_prompt_tokens = item.num_prompt_tokens
                else:
                    yield item
        except RayTaskError:
            logger.exception("request %s failed in its replica", current_request().request_id)
            raise generation_failed() from None
        except (RayError, RayServeException) as error:
            raise ReplicaLostError(type(error).__name__) from None
        except (asyncio.CancelledError, GeneratorExit):
            give_up(items)
            raise

    async def _wait_for_turn(self, items: Any) -> None:
        """Return once a replica has taken the request on."""
        self.num_waiting += 1
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                started = await anext(items)
        except TimeoutError:
            give_up(items)
            raise queued_too_long() from None
        finally:
            self.num_waiting -= 1
        assert isinstance(started, Started)
        record = current_request()
        record.queue_s = record.elapsed_s


def give_up(items: Any) -> None:
    """Cancel a call. Serve leaves one alone that a replica took on a moment ago and nobody has looked at since."""
    items.cancel()
    taken = getattr(items, "_replica_result_future", None)
    if taken is not None and taken.done() and not taken.cancelled() and taken.exception() is None:
        taken.result().cancel()


async def _whole(items: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """`items`, once all of them are there."""
    async with aclosing(items):
        everything = [item async for item in items]
    for item in everything:
        yield item
