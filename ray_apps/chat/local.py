"""A model of this machine, in this process."""

import asyncio
import queue
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.errors import ChatError, ModelError
from ray_apps.chat.talker import Ending, Sampling, TooLongError
from ray_apps.engine.protocol import Engine, EngineError, GenerationRequest, SamplingParams, TokenDelta
from ray_apps.transcript import Message

Result = TokenDelta | Exception


class LocalModel:
    """An engine, which takes questions from one thread and works in others."""

    def __init__(self, engine: Engine, model: str) -> None:
        self.name = Path(model.rstrip("/")).name
        self._engine = engine
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def reply(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str | Ending]:
        """See `Talker`."""
        ids = self._encode(messages)
        room = self._engine.max_model_len - len(ids)
        if room < min(sampling.max_tokens, self._engine.max_model_len // 8):
            raise TooLongError(f"the chat is {len(ids)} tokens, of {self._engine.max_model_len} that the model reads")
        params = SamplingParams(
            max_tokens=min(sampling.max_tokens, room),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
        )
        request = GenerationRequest(uuid.uuid4().hex, tuple(ids), params)
        results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        task = asyncio.run_coroutine_threadsafe(self._generate(request, results), self._loop)
        num_tokens = 0
        try:
            while True:
                result = results.get()
                if isinstance(result, Exception):
                    raise ChatError(f"the model failed: {result}")
                num_tokens += len(result.token_ids)
                if result.text:
                    yield result.text
                if result.finish_reason:
                    yield Ending(result.finish_reason, len(ids), num_tokens)
                    return
        finally:
            task.cancel()

    def close(self) -> None:
        """See `Talker`."""
        self._engine.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        try:
            return self._engine.encode_chat(messages)
        except ModelError as error:
            raise ChatError(f"{error}; `vicuna weights to-safetensors --template NAME` gives it one") from None
        except ValueError as error:
            raise ChatError(f"the model's chat template refuses the chat: {error}") from None

    async def _generate(self, request: GenerationRequest, results: "queue.SimpleQueue[Result]") -> None:
        try:
            async for delta in self._engine.generate(request):
                results.put(delta)
        except (EngineError, ValueError) as error:
            results.put(error)
