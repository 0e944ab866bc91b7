"""A job that a replica has prepared, and how long it has been at it."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from ray_apps.engine.protocol import GenerationRequest, TokenDelta
from ray_apps.serve.jobs import Job


class Watch:
    """Counts seconds from now. `first_s`: when the first piece of any answer was there, told or not."""

    def __init__(self) -> None:
        self.first_s = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Until now."""
        return time.monotonic() - self._started

    async def seeing(self, deltas: AsyncGenerator[TokenDelta, None]) -> AsyncGenerator[TokenDelta, None]:
        """The pieces of an answer."""
        async with aclosing(deltas):
            async for delta in deltas:
                self.first_s = self.first_s or self.seconds
                yield delta


@dataclass(frozen=True, slots=True)
class Work:
    """A job with its prompts in ids and a request for each answer. `num_dropped`: messages that were left out."""

    job: Job
    prompts: list[tuple[int, ...]]
    requests: list[GenerationRequest]
    num_dropped: int
    watch: Watch

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts, each counted once."""
        return sum(map(len, self.prompts))
