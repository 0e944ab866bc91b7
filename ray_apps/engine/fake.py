"""An engine that answers with the last user message: for tests of whatever stands on an engine, without a model.

Its tokens are bytes, so most characters of the world take several, and its answers are known beforehand. Temperature
and seed change nothing.
"""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

from ray_apps.engine.answer import Answer
from ray_apps.engine.detokenize import Vocabulary
from ray_apps.engine.protocol import (
    EngineError,
    EngineStats,
    GenerationRequest,
    SamplingError,
    SamplingParams,
    TokenDelta,
    TokenLogprob,
    UnsupportedError,
)

_BYTES = Vocabulary(tuple(bytes([byte]) for byte in range(256)))
_ROLES = {"system": 256, "user": 257, "assistant": 258, "tool": 260}
_END = 259
_EMBEDDING_SIZE = 16


class FakeEngine:
    """Echoes the last user message, or a prompt that is no chat.

    `pause_s` passes before every token; after `fail_after` tokens of an answer generation fails.
    """

    def __init__(
        self,
        *,
        max_model_len: int = 4096,
        pause_s: float = 0.0,
        fail_after: int | None = None,
        adapters: Collection[str] = (),
        chat_template: str | None = None,
    ) -> None:
        self.max_model_len = max_model_len
        self.vocab_size = 261
        self.chat_template = chat_template
        self.num_running = 0
        self._adapters = sorted(adapters)
        self._pause_s = pause_s
        self._fail_after = fail_after
        self._num_read = self._num_told = 0
        self._closed = False

    def check_sampling(self, sampling: SamplingParams) -> None:
        """Return if it asks for nothing that an echo cannot do."""
        if unknown := [token for token, _ in sampling.logit_bias if not 0 <= token < self.vocab_size]:
            raise SamplingError("logit_bias", f"{unknown[0]} is no token; valid: 0 to {self.vocab_size - 1}")
        if sampling.json_schema is not None:
            raise SamplingError("response_format", "an echo follows no schema; valid: text")

    def token_bytes(self, token_id: int) -> bytes:
        """The byte that it is."""
        return bytes([token_id]) if token_id < len(_BYTES.pieces) else b""

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """One token for the role, one per byte of the text and one at the end, for each message."""
        if not any(message["role"] == "user" for message in messages):
            raise ValueError("there is no user message to echo")
        return [
            token
            for message in messages
            for token in (_ROLES[message["role"]], *(message["content"] or "").encode(), _END)
        ]

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """One token per byte."""
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        """The bytes as text."""
        return b"".join(map(self.token_bytes, token_ids)).decode(errors="replace")

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """Yield the last user message of the prompt, character by character."""
        await self.check_health()
        if request.adapter is not None and request.adapter not in self._adapters:
            valid = ", ".join(self._adapters) or "none"
            raise UnsupportedError(f"there is no adapter {request.adapter!r}; valid: {valid}")
        self._num_read += len(request.prompt_ids)
        self.num_running += 1
        try:
            prompt_logprobs = _certain(request.prompt_ids[1:], request.prompt_logprobs)
            async for delta in self._echo(request):
                yield replace(delta, prompt_logprobs=prompt_logprobs)
                prompt_logprobs = ()
        finally:
            self.num_running -= 1

    async def _echo(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        if not request.sampling.max_tokens:
            yield TokenDelta("", (), "length")
            return
        answer = Answer(request.sampling, _BYTES, end_ids={_END})
        told = _last_user_message(request.prompt_ids)
        for count, token in enumerate(cycle(told) if request.sampling.ignore_eos else told):
            await asyncio.sleep(self._pause_s)
            if count == self._fail_after:
                raise EngineError("the fake engine was told to fail")
            self._num_told += 1
            logprobs = _certain([token], request.sampling.logprobs)
            if delta := answer.push(token, logprobs[0] if logprobs else None):
                yield delta
            if answer.finished:
                return

    async def embed(self, prompt_ids: Sequence[int]) -> list[float]:
        """How often each remainder of a token divided by 16 occurs, on average."""
        await self.check_health()
        self._num_read += len(prompt_ids)
        rests = [token % _EMBEDDING_SIZE for token in prompt_ids]
        return [rests.count(rest) / len(rests) for rest in range(_EMBEDDING_SIZE)]

    def stats(self) -> EngineStats:
        """What it does now."""
        return EngineStats(self.num_running, num_prompt_tokens=self._num_read, num_generated_tokens=self._num_told)

    async def check_health(self) -> None:
        """Return unless the engine was shut down."""
        if self._closed:
            raise EngineError("the engine was shut down")

    def shutdown(self) -> None:
        """Refuse every later request."""
        self._closed = True


def _certain(token_ids: Sequence[int], num_likeliest: int | None) -> tuple[TokenLogprob, ...]:
    """Tokens that were sure to come, if log probabilities are asked for."""
    if num_likeliest is None:
        return ()
    return tuple(TokenLogprob(token, 0.0, ((token, 0.0),)[:num_likeliest]) for token in token_ids)


def _last_user_message(prompt_ids: Sequence[int]) -> Sequence[int]:
    """Its tokens in a prompt, or the whole of a prompt that has none, with the end token."""
    if _ROLES["user"] not in prompt_ids:
        return (*prompt_ids, _END)
    start = len(prompt_ids) - list(reversed(prompt_ids)).index(_ROLES["user"])
    return prompt_ids[start : prompt_ids.index(_END, start) + 1]
