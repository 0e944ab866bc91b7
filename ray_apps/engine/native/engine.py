"""The torch + transformers engine: one inference thread, and one batch that requests join and leave at any step.

The event loop and the thread meet in two places: a queue of jobs, and each job's own queue of items. A request that is
given up is noticed before the next forward pass.
"""

import asyncio
import logging
import queue
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass

import torch

from ray_apps.engine.language import LanguageEngine
from ray_apps.engine.native.adapters import Adapters
from ray_apps.engine.native.cache import Segment
from ray_apps.engine.native.forward import LostModelError, MakeModel, SlotModel, fitting_slots
from ray_apps.engine.native.jobs import AnswerJob, EmbeddingJob, Item, Job, Outcome, Part
from ray_apps.engine.native.loading import LoadedModel
from ray_apps.engine.native.pulse import PATIENCE_S, Pulse
from ray_apps.engine.native.scheduler import PREFILL_TOKENS, Running, Scheduler, Turn
from ray_apps.engine.protocol import (
    EngineError,
    EngineStats,
    EngineStoppedError,
    GenerationRequest,
    SamplingError,
    TokenDelta,
)

logger = logging.getLogger(__name__)


@dataclass
class _Counts:
    """Tokens of prompts, those of them that were in the cache, and tokens of answers, since the start."""

    read: int = 0
    cached: int = 0
    generated: int = 0


class NativeEngine(LanguageEngine):
    """Serves a `LoadedModel`. See `Engine` for its surface.

    `max_num_seqs`: requests worked on at a time; further ones wait. `prefill_tokens`: of prompts, read in one pass.
    `patience_s`: when a pass takes longer, the engine counts as stuck. `adapters`: directories by name, of which
    `max_loaded_adapters` are held at a time. `make_model`: what does the passes.

    Raises:
        ModelError: the model cannot be served by this engine, or an adapter not with the model.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_num_seqs: int = 16,
        prefill_tokens: int = PREFILL_TOKENS,
        patience_s: float = PATIENCE_S,
        adapters: Mapping[str, str] | None = None,
        max_loaded_adapters: int = 8,
        make_model: MakeModel = SlotModel,
    ) -> None:
        super().__init__(loaded.language)
        self._loaded = loaded
        self._counts = _Counts()
        self._adapters = Adapters(loaded.model, adapters or {}, max_loaded_adapters)
        num_slots = fitting_slots(loaded.model, max_num_seqs, loaded.max_model_len)
        self._model = make_model(loaded.model, num_slots, loaded.max_model_len)
        self._try_out()
        self._scheduler: Scheduler[Job] = Scheduler(num_slots, prefill_tokens)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._outbox = _Outbox()
        self._closing = threading.Event()
        self._pulse = Pulse(patience_s)
        self._open: set[Job] = set()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def _try_out(self) -> None:
        """In a thread that ends, as those that load do: the threads of its products end with it."""
        with ThreadPoolExecutor(1) as trying:
            trying.submit(self._model.try_out).result()

    @property
    def max_model_len(self) -> int:
        """The most tokens a prompt and its answer may have together."""
        return self._loaded.max_model_len

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """Yield the answer to `request`, which joins those under way as soon as there is room."""
        await self.check_health()  # before anything is made on a device that may be lost
        grammar, adapter = None, None
        if request.sampling.json_schema is not None:
            grammar = await asyncio.to_thread(self._grammar, request.sampling)
        if request.adapter is not None:
            adapter = await asyncio.to_thread(self._adapters.get, request.adapter)
        async with aclosing(self._work_on(AnswerJob(request, self._loaded, grammar, adapter))) as items:
            async for item in items:
                assert isinstance(item, TokenDelta)
                yield item
                if item.finish_reason:
                    return

    async def embed(self, prompt_ids: Sequence[int]) -> list[float]:
        """The mean of the last hidden states, read in chunks as prompts are."""
        async with aclosing(self._work_on(EmbeddingJob(tuple(prompt_ids)))) as items:
            mean = await anext(items)
        assert isinstance(mean, list)
        return mean

    async def _work_on(self, job: Job) -> AsyncGenerator[Item, None]:
        self._open.add(job)
        self._jobs.put(job)
        # Asked afterwards: whatever is put before the thread refuses the waiting jobs is refused with them.
        try:
            await self.check_health()
            while True:
                item = await job.items.get()
                if isinstance(item, EngineError | SamplingError):
                    raise item
                yield item
        finally:
            self._open.discard(job)
            job.cancelled.set()

    def stats(self) -> EngineStats:
        """What the inference thread does now."""
        running = [*self._scheduler.running]
        return EngineStats(
            len(running),
            len(self._scheduler.waiting) + self._jobs.qsize(),
            sum(one.num_read for one in running) / self._model.cache.num_tokens,
            *(self._counts.read, self._counts.cached, self._counts.generated),
        )

    async def check_health(self) -> None:
        """Return if the inference thread lives and gets on. When it does not, everyone who waits for it is told."""
        if self._pulse.is_stuck:
            error = EngineStoppedError(f"a pass has not ended after {self._pulse.patience_s:g} s")
            for job in self._open:
                job.loop.call_soon_threadsafe(job.items.put_nowait, error)
            raise error
        if self._closing.is_set() or not self._thread.is_alive():
            raise EngineStoppedError("the engine is not running")
        try:
            self._model.check()
        except LostModelError as error:
            raise EngineStoppedError(str(error)) from None

    def shutdown(self) -> None:
        """Give up every request and end the thread, unless it is stuck."""
        self._closing.set()
        self._jobs.put(None)
        self._thread.join(self._pulse.patience_s)
        self._model.close()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._take_jobs()
                with self._pulse:
                    self._drop_cancelled()
                    self._step()
                    self._outbox.deliver()
        finally:
            self._closing.set()
            self._take_jobs()
            self._refuse_all("the engine was shut down")

    def _take_jobs(self) -> None:
        """Let new requests wait for a slot; wait for one if there is nothing to do."""
        must_wait = not self._scheduler.has_work and not self._closing.is_set()
        while must_wait or not self._jobs.empty():
            must_wait = False
            if job := self._jobs.get():
                self._scheduler.waiting.append(job)

    def _drop_cancelled(self) -> None:
        for job in self._all_jobs():
            if job.cancelled.is_set():
                self._scheduler.end(job)

    def _all_jobs(self) -> list[Job]:
        return [*(running.owner for running in self._scheduler.running), *self._scheduler.waiting]

    def _step(self) -> None:
        """One forward pass, and the next token of everyone who has read all there is."""
        try:
            for running in self._scheduler.place_waiting():
                self._fill(running)
            if turns := self._scheduler.next_turns():
                self._forward(turns)
        except Exception as error:
            logger.exception("a pass over %d requests failed", len(self._scheduler.running))
            self._fail_running(error)
            if isinstance(error, torch.AcceleratorError | LostModelError):
                self._closing.set()  # Lost for this process: end the thread, so that the replica is replaced.

    def _fill(self, running: Running[Job]) -> None:
        """Put into a slot what it is to have of the prompt."""
        placement = running.placement
        running.owner.num_cached = placement.num_cached
        self._counts.read += len(running.owner.ids)
        self._counts.cached += placement.num_cached
        if placement.copied_from is not None:
            self._model.copy(placement.copied_from, placement.slot, placement.num_cached)

    def _forward(self, turns: list[Turn[Job]]) -> None:
        turns = sorted(turns, key=lambda turn: (turn.count > 1, turn.running.placement.slot))
        segments: list[Segment] = []
        token_ids: list[int] = []
        chosen: list[int] = []
        parts: list[tuple[Job, Part]] = []
        for turn in turns:
            job, start, first = turn.running.owner, turn.running.num_read, len(token_ids)
            rows = [first - start + at for at in job.wanted(start, turn.count, is_last=turn.chooses)]
            tokens, places = slice(first, first + turn.count), slice(len(chosen), len(chosen) + len(rows))
            parts.append((job, Part(start, tokens, places, turn.chooses)))
            segments.append(Segment(turn.running.placement.slot, start, turn.count, job.adapter))
            token_ids.extend(job.ids[start : start + turn.count])
            chosen.extend(rows)
        logits = self._model.forward(segments, token_ids, chosen)
        for turn in turns:
            self._scheduler.advance(turn)
        outcome = Outcome(logits, logits.argmax(dim=-1).tolist(), self._model.hidden)
        for job, part in parts:
            self._tell(job, part, outcome)

    def _tell(self, job: Job, part: Part, outcome: Outcome) -> None:
        """What a pass gave one job; what goes wrong with it is that job's alone."""
        num_before = len(job.ids)
        try:
            item = job.take(part, outcome)
        except (torch.AcceleratorError, LostModelError):
            raise
        except Exception as error:
            if not isinstance(error, SamplingError):
                logger.exception("a request failed after a pass")
            self._fail(job, error)
            return
        self._counts.generated += len(job.ids) - num_before
        if item is not None:
            self._outbox.put(job, item)
        if job.finished:
            self._scheduler.end(job)

    def _fail_running(self, error: Exception) -> None:
        """Everyone in the pass fails with it; what the slots hold is not relied on any more."""
        for job in [running.owner for running in self._scheduler.running]:
            self._fail(job, error)
        self._scheduler.slots.forget()

    def _fail(self, job: Job, error: Exception) -> None:
        told = error if isinstance(error, SamplingError) else EngineError(f"generation failed: {type(error).__name__}")
        self._outbox.put(job, told)
        self._scheduler.end(job)

    def _refuse_all(self, reason: str) -> None:
        for job in self._all_jobs():
            self._outbox.put(job, EngineStoppedError(reason))
        self._outbox.deliver()


class _Outbox:
    """Gathers what one pass has to tell, so that each event loop is woken once."""

    def __init__(self) -> None:
        self._items: dict[asyncio.AbstractEventLoop, list[tuple[Job, Item]]] = defaultdict(list)

    def put(self, job: Job, item: Item) -> None:
        """To be delivered to the one who waits for the job."""
        self._items[job.loop].append((job, item))

    def deliver(self) -> None:
        """Hand everything over. Called from the inference thread."""
        for loop, items in self._items.items():
            try:
                loop.call_soon_threadsafe(_hand_over, items)
            except RuntimeError:  # The loop is closed: nobody listens any more.
                for job, _ in items:
                    job.cancelled.set()
        self._items.clear()


def _hand_over(items: list[tuple[Job, Item]]) -> None:
    for job, item in items:
        job.items.put_nowait(item)
