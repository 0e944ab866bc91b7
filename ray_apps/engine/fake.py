"""An engine that answers with the last user message: for tests of whatever stands on an engine, without a model.

Its tokens are bytes, so most characters of the world take several, and its answers are known beforehand. Temperature
and seed change nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

from ray_apps.engine.answer import Answer
from ray_apps.engine.detokenize import Vocabulary
from ray_apps.engine.protocol import (
    EngineError,
    GenerationRequest,
    SamplingError,
    SamplingParams,
    TokenDelta,
    TokenLogprob,
)

_BYTES = Vocabulary(tuple(bytes([byte]) for byte in range(256)))
_ROLES = {"system": 256, "user": 257, "assistant": 258}
_END = 259


class FakeEngine:
    """Echoes. `pause_s` passes before every token; after `fail_after` tokens of an answer generation fails."""

    def __init__(self, *, max_model_len: int = 4096, pause_s: float = 0.0, fail_after: int | None = None) -> None:
        self.max_model_len = max_model_len
        self.num_running = 0
        self._pause_s = pause_s
        self._fail_after = fail_after
        self._closed = False

    def check_sampling(self, sampling: SamplingParams) -> None:
        """Return if it asks for nothing that an echo cannot do."""
        if unknown := [token for token, _ in sampling.logit_bias if not 0 <= token <= _END]:
            raise SamplingError("logit_bias", f"{unknown[0]} is no token; valid: 0 to {_END}")
        if sampling.json_schema is not None:
            raise SamplingError("response_format", "an echo follows no schema; valid: text")

    def token_bytes(self, token_id: int) -> bytes:
        """The byte that it is."""
        return bytes([token_id]) if token_id < len(_BYTES.pieces) else b""

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """One token for the role, one per byte of the text and one at the end, for each message."""
        if not any(message["role"] == "user" for message in messages):
            raise ValueError("there is no user message to echo")
        return [
            token for message in messages for token in (_ROLES[message["role"]], *message["content"].encode(), _END)
        ]

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """Yield the last user message of the prompt, character by character."""
        await self.check_health()
        self.num_running += 1
        try:
            async for delta in self._echo(request):
                yield delta
        finally:
            self.num_running -= 1

    async def _echo(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        answer = Answer(request.sampling, _BYTES, end_ids={_END})
        for count, token in enumerate(_last_user_message(request.prompt_ids)):
            await asyncio.sleep(self._pause_s)
            if count == self._fail_after:
                raise EngineError("the fake engine was told to fail")
            certain = TokenLogprob(token, 0.0, ((token, 0.0),)[: request.sampling.logprobs])
            if delta := answer.push(token, None if request.sampling.logprobs is None else certain):
                yield delta
            if answer.finished:
                return

    async def check_health(self) -> None:
        """Return unless the engine was shut down."""
        if self._closed:
            raise EngineError("the engine was shut down")

    def shutdown(self) -> None:
        """Refuse every later request."""
        self._closed = True


def _last_user_message(prompt_ids: Sequence[int]) -> Sequence[int]:
    """Its tokens in a prompt, with the end token."""
    start = len(prompt_ids) - list(reversed(prompt_ids)).index(_ROLES["user"])
    return prompt_ids[start : prompt_ids.index(_END, start) + 1]
