"""A guard model that is served here, as a moderator."""

import asyncio
import re
import uuid
from collections.abc import Sequence

from data_prep.moderation import Judgement, ModerationError, worse
from ray_apps.engine.protocol import SamplingParams
from ray_apps.serve.errors import ApiError
from ray_apps.serve.jobs import Backend, ChatPrompt, Job
from ray_apps.serve.record import RequestRecord, begin

CATEGORIES = {
    "S1": "illicit/violent",
    "S2": "illicit",
    "S3": "sexual",
    "S4": "sexual/minors",
    "S5": "defamation",
    "S6": "specialized-advice",
    "S7": "privacy",
    "S8": "intellectual-property",
    "S9": "illicit/violent",
    "S10": "hate",
    "S11": "self-harm",
    "S12": "sexual",
    "S13": "elections",
    "S14": "code-interpreter-abuse",
}
"""MLCommons' hazards, which Llama Guard 3 tells, under OpenAI's names where there are such."""
MOST_TOKENS = 64
AT_A_TIME = 4
"""Texts that it is asked about together: it has a queue of its own, which others wait in too."""
SHORTEST = 200
"""Characters of a piece of a text that is too long for it; below that it is no use."""


class GuardModel:
    """A model of Llama Guard's kind (Inan et al. 2023): asked about a text, it says `safe`, or `unsafe` and codes.

    `backend` answers for the model called `name`, which is asked by its own chat template.
    """

    def __init__(self, backend: Backend, name: str) -> None:
        self._backend = backend
        self._name = name
        self._turn = asyncio.Semaphore(AT_A_TIME)
        self.assessed: Sequence[str] = sorted({*CATEGORIES.values()})

    async def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """See `Judge`. When one cannot be judged, the others are given up."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._judge(text)) for text in texts]
        except* (ModerationError, ApiError) as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _judge(self, text: str) -> Judgement:
        """Of a text that is too long for the guard, the worse of its halves'."""
        begin(RequestRecord())  # in a task of its own: what the guard takes is not the client's
        try:
            async with self._turn:
                return await self._ask(text)
        except ApiError as error:
            if error.failure.code != "context_length_exceeded" or len(text) < 2 * SHORTEST:
                raise
        middle, overlap = len(text) // 2, SHORTEST // 4
        one, other = await self.judge([text[: middle + overlap], text[middle - overlap :]])
        return worse(one, other)

    async def _ask(self, text: str) -> Judgement:
        prompt = ChatPrompt(({"role": "user", "content": text},))
        greedy = SamplingParams(max_tokens=0, temperature=0.0)
        job = Job(f"moderation-{uuid.uuid4().hex}", (prompt,), max_tokens=MOST_TOKENS, sampling=greedy)
        pieces = [delta.text async for delta in self._backend.generate(job)]
        return read_verdict("".join(pieces), self._name)


def read_verdict(answer: str, model: str) -> Judgement:
    """A guard's answer as a judgement.

    Raises:
        ModerationError: it is neither `safe` nor `unsafe`.
    """
    match answer.replace(",", " ").split():
        case ["safe"]:
            return Judgement({})
        case ["unsafe", *codes] if all(re.fullmatch(r"S?\d{0,2}", code) for code in codes):
            names = frozenset(CATEGORIES[code] for code in codes if code in CATEGORIES) or frozenset({"flagged"})
            return Judgement(dict.fromkeys(sorted(names), 1.0), names)
    raise ModerationError(f"the guard model {model!r} gave no verdict: {answer.strip()[:60]!r}")
