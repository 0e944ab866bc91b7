"""The torch + transformers engine: one inference thread, requests one after another in the order they came.

The event loop and the thread meet in two places: a queue of jobs, and each job's own queue of deltas. A request that is
given up is noticed before the next forward pass.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from data_prep.tokenizer import encode_prompt
from ray_apps.engine.answer import Answer
from ray_apps.engine.native.decode import generate_tokens
from ray_apps.engine.native.loading import LoadedModel
from ray_apps.engine.protocol import EngineError, GenerationRequest, TokenDelta

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    request: GenerationRequest
    loop: asyncio.AbstractEventLoop
    deltas: asyncio.Queue[TokenDelta | EngineError] = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def send(self, item: TokenDelta | EngineError) -> None:
        """Hand `item` to the event loop. Called from the inference thread."""
        try:
            self.loop.call_soon_threadsafe(self.deltas.put_nowait, item)
        except RuntimeError:  # The loop is closed: nobody listens any more.
            self.cancelled.set()


class NativeEngine:
    """Serves a `LoadedModel`. See `Engine` for its surface."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def max_model_len(self) -> int:
        """The most tokens a prompt and its answer may have together."""
        return self._loaded.max_model_len

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of `messages` by the model's own chat template."""
        return encode_prompt(self._loaded.tokenizer, messages)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """Yield the answer to `request`, after the requests that came before it."""
        job = _Job(request, asyncio.get_running_loop())
        self._jobs.put(job)
        # Asked afterwards: whatever is put before the thread refuses the waiting jobs is refused with them.
        await self.check_health()
        try:
            while True:
                item = await job.deltas.get()
                if isinstance(item, EngineError):
                    raise item
                yield item
                if item.finish_reason:
                    return
        finally:
            job.cancelled.set()

    async def check_health(self) -> None:
        """Return if the inference thread lives."""
        if self._closing.is_set() or not self._thread.is_alive():
            raise EngineError("the engine is not running")

    def shutdown(self) -> None:
        """Give up every request and end the thread."""
        self._closing.set()
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                self._answer(job)
        finally:
            self._closing.set()
            self._refuse_waiting()

    def _answer(self, job: _Job) -> None:
        try:
            for delta in self._deltas(job):
                job.send(delta)
            if self._closing.is_set():
                job.send(EngineError("the engine was shut down"))
        except Exception as error:
            logger.exception("request %s failed", job.request.request_id)
            job.send(EngineError(f"generation failed: {type(error).__name__}"))
            if isinstance(error, torch.AcceleratorError):
                raise  # The device is lost for this process: end the thread, so that the replica is replaced.

    def _deltas(self, job: _Job) -> Iterator[TokenDelta]:
        loaded, request = self._loaded, job.request
        answer = Answer(
            request.sampling,
            loaded.vocabulary,
            end_ids=loaded.end_ids,
            model_stop=loaded.stop_strings,
            strip_space=loaded.answer_opens_with_space,
        )
        tokens = generate_tokens(
            loaded.model, request.prompt_ids, request.sampling, lambda: job.cancelled.is_set() or self._closing.is_set()
        )
        for token in tokens:
            if delta := answer.push(token):
                yield delta
            if answer.finished:
                return

    def _refuse_waiting(self) -> None:
        while not self._jobs.empty():
            if job := self._jobs.get():
                job.send(EngineError("the engine was shut down"))
