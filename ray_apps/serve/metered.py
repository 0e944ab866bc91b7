"""A backend with a limit on what one request asks for, which notes what is used: for the log and as metrics."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict

from ray_apps.serve.errors import bad_request
from ray_apps.serve.jobs import Backend, Delta, EmbeddingJob, Embeddings, Job, ModelState, TokenizeJob, Tokens
from ray_apps.serve.metrics import RequestMetrics
from ray_apps.serve.policy import Limits
from ray_apps.serve.record import RequestRecord, current_request


class MeteredBackend:
    """`backend`, which answers for `model`, within the `limits` of one request.

    `with_texts`: the record gets what is asked and answered, too.
    """

    def __init__(
        self,
        backend: Backend,
        model: str,
        *,
        limits: Limits,
        metrics: RequestMetrics | None = None,
        with_texts: bool = False,
    ) -> None:
        self._backend = backend
        self._model = model
        self._limits = limits
        self._metrics = metrics
        self._with_texts = with_texts

    async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        """Yield what the backend yields. An answer that is not finished counts as `error` or `abort`."""
        record = current_request()
        record.model = job.adapter or self._model
        num_answers = job.num_answers * len(job.prompts)
        self._check_count("prompt", job.num_answers, self._limits.max_n)
        self._check_count("request", num_answers, self._limits.max_answers)
        last = [0.0] * num_answers
        if self._with_texts:
            record.messages = [prompt if isinstance(prompt, tuple) else asdict(prompt) for prompt in job.prompts]
            record.answers = [""] * num_answers
        unfinished = "abort"
        try:
            async with aclosing(self._backend.generate(job)) as deltas:
                async for delta in deltas:
                    self._note_time(record, delta, last, streams=job.streams)
                    self._note(record, delta)
                    yield delta
        except Exception:
            unfinished = "error"
            raise
        finally:
            record.finish_reasons += [unfinished] * (num_answers - len(record.finish_reasons))

    @staticmethod
    def _check_count(kind: str, count: int, limit: int) -> None:
        if count > limit:
            raise bad_request(f"n: {count} answers to one {kind} are too many; valid: up to {limit}", param="n")

    def _note_time(self, record: RequestRecord, delta: Delta, last: list[float], *, streams: bool) -> None:
        """`last`: when each answer had its latest piece, in seconds since the request came.

        Answers that are told as a whole say by themselves when their tokens were there.
        """
        now = record.elapsed_s
        if record.queue_s is None:
            record.queue_s = max(0.0, now - delta.worked_s)
        record.last_token_s = now if streams else record.queue_s + delta.worked_s
        if record.first_token_s is None:
            record.first_token_s = now if streams else record.queue_s + delta.first_worked_s
            if self._metrics:
                self._metrics.first_piece(record.model or self._model, record.first_token_s, record.queue_s)
        elif streams and last[delta.index] and self._metrics:
            self._metrics.next_piece(record.model or self._model, now - last[delta.index])
        last[delta.index] = now

    def _note(self, record: RequestRecord, delta: Delta) -> None:
        record.num_prompt_tokens = delta.num_prompt_tokens
        record.num_completion_tokens = delta.num_completion_tokens
        record.num_cached_tokens = delta.num_cached_tokens
        if delta.finish_reason:
            record.finish_reasons.append(delta.finish_reason)
        if self._with_texts:
            record.answers[delta.index] += delta.text

    async def embed(self, job: EmbeddingJob) -> Embeddings:
        """What the backend answers."""
        record = current_request()
        record.model = self._model
        embeddings = await self._backend.embed(job)
        record.num_prompt_tokens = embeddings.num_prompt_tokens
        return embeddings

    async def tokenize(self, job: TokenizeJob) -> Tokens:
        """What the backend answers."""
        current_request().model = self._model
        return await self._backend.tokenize(job)

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """What the backend answers."""
        current_request().model = self._model
        return await self._backend.detokenize(token_ids)

    async def state(self) -> ModelState:
        """The backend's."""
        return await self._backend.state()
