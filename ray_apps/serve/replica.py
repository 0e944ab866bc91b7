"""One engine per replica: what a Serve deployment runs. Knows nothing of HTTP, and is no deployment by itself."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from ray_apps.engine.build import build_engine
from ray_apps.serve.backend import ChatDelta, ChatJob, EngineBackend
from ray_apps.serve.config import ServeArgs
from ray_apps.serve.errors import ApiError, Failure


class Replica:
    """Loads the model of `args` and answers the ingress."""

    def __init__(self, args: ServeArgs) -> None:
        self._engine = build_engine(
            args.engine,
            args.model,
            device=args.device,
            dtype=args.dtype,
            max_model_len=args.max_model_len,
            num_threads=args.num_threads,
            max_num_seqs=args.max_ongoing_requests,
        )
        self._backend = EngineBackend(self._engine)

    async def chat(self, job: ChatJob) -> AsyncGenerator[ChatDelta | Failure, None]:
        """Yield the answer to `job`. An error is yielded too, as data: what is raised here would be wrapped by Ray."""
        try:
            async with aclosing(self._backend.chat(job)) as deltas:
                async for delta in deltas:
                    yield delta
        except ApiError as error:
            yield error.failure

    async def check_health(self) -> None:
        """Raise if the engine is beyond help; Serve then replaces this replica."""
        await self._engine.check_health()

    def __del__(self) -> None:
        # Serve calls this when the answers are finished or their time is up. A constructor that failed left no engine.
        if hasattr(self, "_engine"):
            self._engine.shutdown()
