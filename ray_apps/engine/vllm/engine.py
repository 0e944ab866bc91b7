"""The engine on vLLM's `AsyncLLM`: its core and its workers are processes of their own, below this one.

vLLM gives tokens. Where an answer ends and what its text is, our own `Answer` says, as for every engine.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.loggers import StatLoggerBase

from ray_apps.engine.answer import Answer
from ray_apps.engine.language import Language, LanguageEngine
from ray_apps.engine.protocol import (
    EngineError,
    EngineStats,
    EngineStoppedError,
    GenerationRequest,
    SamplingError,
    TokenDelta,
    TokenLogprob,
    UnsupportedError,
)
from ray_apps.engine.vllm.sampling import prompt_scores, to_vllm, token_logprob

logger = logging.getLogger(__name__)

PATIENCE_S = 120.0
"""How long vLLM may say nothing while it has work: a step on the longest prompt takes well under a minute."""


class Gauge(StatLoggerBase):
    """Keeps what vLLM's scheduler said last."""

    def __init__(self, vllm_config: Any = None, engine_index: int = 0) -> None:
        self.num_waiting = 0
        self.cache_usage = 0.0
        self.told_at = 0.0  # by the monotonic clock

    def record(self, scheduler_stats: Any, *others: Any, **named: Any) -> None:
        """Take what it says after a step."""
        self.told_at = time.monotonic()
        if scheduler_stats is not None:
            self.num_waiting = scheduler_stats.num_waiting_reqs
            self.cache_usage = scheduler_stats.kv_cache_usage

    def log_engine_initialized(self) -> None:
        """Nothing to tell."""


class VllmEngine(LanguageEngine):
    """Serves what `llm` runs. See `Engine` for its surface.

    `gauge` is one of the stat loggers of `llm`. `patience_s`: when vLLM has work and says nothing for longer, it counts
    as stuck.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        language: Language,
        gauge: Gauge,
        *,
        max_model_len: int,
        adapters: Mapping[str, str] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        super().__init__(language)
        self._patience_s = patience_s
        self._busy_since = 0.0
        self._stuck = False
        self.max_model_len = max_model_len
        self._llm = llm
        self._gauge = gauge
        self._adapters = {
            name: LoRARequest(name, number, directory)
            for number, (name, directory) in enumerate((adapters or {}).items(), start=1)
        }
        self._stats = EngineStats()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """Yield the answer to `request`, which vLLM batches with those under way."""
        await self.check_health()
        adapter = self._adapter(request.adapter)
        self._loop = asyncio.get_running_loop()
        if not self._stats.num_running:
            self._busy_since = time.monotonic()
        self._count(num_running=1, num_prompt_tokens=len(request.prompt_ids))
        try:
            async with aclosing(self._answer(request, adapter)) as deltas:
                async for delta in deltas:
                    yield delta
        except EngineDeadError:
            raise EngineStoppedError("vLLM's engine core is dead") from None
        except EngineGenerateError as error:
            logger.exception("request %s failed", request.request_id)
            raise EngineError(f"generation failed: {type(error.__cause__ or error).__name__}") from None
        except VLLMValidationError as error:
            raise SamplingError(error.parameter or "sampling", str(error)) from None
        finally:
            self._count(num_running=-1)

    def _adapter(self, name: str | None) -> LoRARequest | None:
        if name is not None and name not in self._adapters:
            raise UnsupportedError(f"there is no adapter {name!r}; valid: {', '.join(self._adapters) or 'none'}")
        return None if name is None else self._adapters[name]

    async def _answer(
        self, request: GenerationRequest, adapter: LoRARequest | None
    ) -> AsyncGenerator[TokenDelta, None]:
        answer = self._language.new_answer(request)
        is_first = True
        outputs = self._llm.generate(
            tokens_input(list(request.prompt_ids)),
            to_vllm(request, self._language),
            request.request_id,
            lora_request=adapter,
        )
        async with aclosing(outputs):
            async for output in outputs:
                scores: tuple[TokenLogprob, ...] = ()
                if is_first:
                    is_first = False
                    self._count(num_cached_tokens=output.num_cached_tokens or 0)
                    scores = prompt_scores(request, output.prompt_logprobs) if output.prompt_logprobs else ()
                if not request.sampling.max_tokens:
                    yield TokenDelta("", (), "length", (), output.num_cached_tokens or 0, scores)
                    return
                for delta in self._deltas(request, answer, output, scores):
                    yield delta
                if answer.finished:
                    return
        raise EngineError("vLLM ended the answer before it was finished")

    def _deltas(
        self, request: GenerationRequest, answer: Answer, output: Any, scores: tuple[TokenLogprob, ...]
    ) -> Iterator[TokenDelta]:
        completion = output.outputs[0]
        for index, token in enumerate(completion.token_ids):
            scored = completion.logprobs[index] if completion.logprobs else None
            logprob = None if scored is None else token_logprob(token, scored, request.sampling.logprobs)
            self._count(num_generated_tokens=1)
            cached = output.num_cached_tokens or 0
            if delta := answer.push(token, logprob, num_cached=cached, prompt_logprobs=scores):
                yield delta
            scores = ()
            if answer.finished:
                return

    def _count(self, **more: int) -> None:
        self._stats = replace(self._stats, **{name: getattr(self._stats, name) + by for name, by in more.items()})

    async def embed(self, prompt_ids: Sequence[int]) -> list[float]:
        """vLLM either generates or embeds; a model that does the one is not asked for the other."""
        raise UnsupportedError("the vllm engine gives no embeddings; valid: engine native")

    def stats(self) -> EngineStats:
        """What is asked of vLLM, and what its scheduler said last."""
        current = self._stats
        waiting = min(self._gauge.num_waiting, current.num_running)
        return replace(
            current,
            num_running=current.num_running - waiting,
            num_waiting=waiting,
            cache_usage=self._gauge.cache_usage if current.num_running else 0.0,
        )

    async def check_health(self) -> None:
        """Return while the engine core and its workers live and get on."""
        if self._closed:
            raise EngineStoppedError("the engine was shut down")
        heard_at = max(self._busy_since, self._gauge.told_at)
        if self._stats.num_running and time.monotonic() - heard_at > self._patience_s:
            self._stuck = True
            self._llm.output_processor.propagate_error(EngineDeadError())
        if self._stuck:
            raise EngineStoppedError(f"vLLM has said nothing for {self._patience_s:g} s")
        try:
            await self._llm.check_health()
        except EngineDeadError:
            raise EngineStoppedError("vLLM's engine core is dead") from None

    def shutdown(self) -> None:
        """Tell everyone who waits, and end vLLM's processes."""
        if self._closed:
            return
        self._closed = True
        if self._loop is not None:
            with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                self._loop.call_soon_threadsafe(self._llm.output_processor.propagate_error, EngineDeadError())
        self._llm.shutdown()
