"""A guard model that is served here, as a moderator."""

import asyncio
import uuid
from collections.abc import Sequence

from data_prep.moderation import Judgement, ModerationError
from ray_apps.serve.jobs import Backend, ChatPrompt, Job

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
MOST_TOKENS = 32


class GuardModel:
    """A model of Llama Guard's kind (Inan et al. 2023): asked about a text, it says `safe`, or `unsafe` and codes.

    `backend` answers for the model called `name`, which is asked by its own chat template.
    """

    def __init__(self, backend: Backend, name: str) -> None:
        self._backend = backend
        self._name = name
        self.assessed: Sequence[str] = sorted({*CATEGORIES.values()})

    async def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """See `Judge`."""
        return list(await asyncio.gather(*map(self._ask, texts)))

    async def _ask(self, text: str) -> Judgement:
        prompt = ChatPrompt(({"role": "user", "content": text},))
        job = Job(f"moderation-{uuid.uuid4().hex}", (prompt,), max_tokens=MOST_TOKENS)
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
        case ["unsafe", *codes] if all(code in CATEGORIES for code in codes):
            names = frozenset(CATEGORIES[code] for code in codes) or frozenset({"flagged"})
            return Judgement(dict.fromkeys(sorted(names), 1.0), names)
    raise ModerationError(f"the guard model {model!r} gave no verdict: {answer.strip()[:60]!r}")
