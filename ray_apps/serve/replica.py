"""One engine per replica: what a Serve deployment runs. Knows nothing of HTTP, and is no deployment by itself.

Every answer is a stream that begins with `Started`; `Counted` follows where a model works on prompts. An error is given
back too, as data: what is raised here would be wrapped by Ray.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from ray import serve
from ray.serve import metrics

from ray_apps.engine.build import build_engine
from ray_apps.engine.options import EngineOptions
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.config import ModelArgs
from ray_apps.serve.errors import ApiError, Failure
from ray_apps.serve.jobs import Counted, Delta, EmbeddingJob, Embeddings, Job, Started, TokenizeJob, Tokens
from ray_apps.serve.metrics import EngineMetrics, keep_showing

Item = TypeVar("Item")
Answer = AsyncGenerator[Started | Counted | Item | Failure, None]


class Replica:
    """Loads the model of `args` and answers the ingress."""

    def __init__(self, args: ModelArgs) -> None:
        self._engine = build_engine(args.engine, args.model, engine_options(args))
        self._backend = EngineBackend(self._engine, truncate=args.truncate, stream_interval_s=args.stream_interval_s)
        self._hold = _holding(args.max_loaded_adapters)
        engine_metrics = EngineMetrics(metrics)
        keep_showing(lambda: engine_metrics.show(args.served_name, self._engine.stats()))

    async def generate(self, job: Job) -> Answer[Delta]:
        """Yield the answers to `job`."""
        yield Started()
        if job.adapter is not None:
            await self._hold(job.adapter)
        try:
            work = await self._backend.prepare(job)
            yield Counted(work.num_prompt_tokens)
            async with aclosing(self._backend.answer(work)) as deltas:
                async for delta in deltas:
                    yield delta
        except ApiError as error:
            yield error.failure

    async def embed(self, job: EmbeddingJob) -> Answer[Embeddings]:
        """Embed the texts."""
        yield Started()
        try:
            prompts = await self._backend.encode(job)
            yield Counted(sum(map(len, prompts)))
            yield await self._backend.embed_prompts(prompts)
        except ApiError as error:
            yield error.failure

    async def tokenize(self, job: TokenizeJob) -> Answer[Tokens]:
        """The ids of the prompt."""
        yield Started()
        yield await _or_failure(self._backend.tokenize(job))

    async def detokenize(self, token_ids: tuple[int, ...]) -> Answer[str]:
        """The text of ids."""
        yield Started()
        yield await _or_failure(self._backend.detokenize(token_ids))

    async def check_health(self) -> None:
        """Raise if the engine is beyond help; Serve then replaces this replica."""
        await self._engine.check_health()

    def __del__(self) -> None:
        # Serve calls this when the answers are finished or their time is up. A constructor that failed left no engine.
        if hasattr(self, "_engine"):
            self._engine.shutdown()


def engine_options(args: ModelArgs) -> EngineOptions:
    """How the engine of a replica is built."""
    return EngineOptions(
        device=args.device,
        dtype=args.dtype,
        max_model_len=args.max_model_len,
        num_threads=args.num_threads,
        max_num_seqs=args.max_ongoing_requests,
        adapters=args.adapters,
        max_loaded_adapters=args.max_loaded_adapters,
        tensor_parallel_size=args.num_devices,
        quantize=args.quantize,
        device_map=args.device_map,
        max_memory=args.max_memory,
        shards_are_actors=True,
        engine_args=args.engine_args,
    )


def _holding(most: int) -> Callable[[str], Awaitable[None]]:
    """Tells Serve of the adapters that were used last, which are those the engine holds, so that requests come here."""

    @serve.multiplexed(max_num_models_per_replica=most)
    async def hold(name: str) -> None:
        """The engine loads it with the first request."""

    held: Callable[[str], Awaitable[None]] = hold
    return held


async def _or_failure(result: Awaitable[Item]) -> Item | Failure:
    try:
        return await result
    except ApiError as error:
        return error.failure
