"""What is asked and answered is judged before it passes: a `Backend` around another one.

An answer is held back in windows: no text is told before it has been judged together with what precedes it, so that it
can be stopped in the middle. Windows end and begin with sentences where they can, for half of one is easily misjudged.
The moderators are those of data preparation; a guard model served here is another.
"""

import asyncio
import hashlib
import json
import logging
import re
import time
from collections import OrderedDict, defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from data_prep.moderation import CATEGORIES, Judgement, ModerationError, Moderator
from ray_apps.serve.errors import moderation_unavailable, refused_by_moderation
from ray_apps.serve.jobs import (
    Backend,
    ChatPrompt,
    Delta,
    EmbeddingJob,
    Embeddings,
    Job,
    ModelState,
    Prompt,
    TextPrompt,
    TokenizeJob,
    Tokens,
)
from ray_apps.serve.policy import Moderation
from ray_apps.serve.protocol.moderations import ModerationList, ModerationResult

logger = logging.getLogger(__name__)

ALONE_S = 5.0
"""How long a judge that fails is left alone."""
_THREADS = 16
_REMEMBERED = 20_000
_CONTEXT = 200
"""Characters before a window that it is judged with, though windows be shorter."""
_SENTENCE_END = re.compile(r"[.!?\n。！？…][\"')\]”’]*\s*$")
_SENTENCE_BEGIN = re.compile(r"[.!?]\s+|\n|[。！？…]")
_WORD_BEGIN = re.compile(r"\s+")

Where = Literal["input", "output", "endpoint"]
Count = Callable[[Where, str], None]
"""Told of each check: where, and whether it `passed`, was `flagged` or has `failed`."""


class Judge(Protocol):
    """A moderator that others need not wait for."""

    @property
    def assessed(self) -> Sequence[str]:
        """The categories that it knows of."""
        ...

    async def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """A judgement for each text.

        Raises:
            ModerationError: it cannot be asked.
        """
        ...


class ThreadedJudge:
    """A moderator of data preparation, asked in threads of its own: one that hangs takes nobody else's."""

    def __init__(self, moderator: Moderator) -> None:
        self._moderator = moderator
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="moderation")
        self.assessed = moderator.assessed

    async def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """See `Judge`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._moderator.judge, texts)


class Moderating:
    """Checks texts by `settings`; counts what came of it.

    What was judged is remembered, for every turn of a chat brings the turns before it again. A judge that has failed
    twice in a row is left alone for some seconds, so that not everybody waits for it in vain.
    """

    def __init__(
        self,
        judge: Judge,
        settings: Moderation,
        count: Count = lambda where, outcome: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.judge = judge
        self.settings = settings
        self._count = count
        self._now = now
        self._known: OrderedDict[bytes, Judgement] = OrderedDict()
        self._num_failed = 0
        self._alone_until = 0.0

    async def judged(self, texts: Sequence[str], where: Where) -> list[frozenset[str]]:
        """The categories for which each text is flagged; none where the moderator is down and that is to pass.

        Raises:
            ApiError: the moderator is down, and that is not to pass.
        """
        found = await self.judgements(texts, where)
        return [frozenset()] * len(texts) if found is None else [self._flagged(one) for one in found]

    async def judgements(self, texts: Sequence[str], where: Where) -> list[Judgement] | None:
        """What the moderator holds of the texts; None where it is down and that is to pass. Raises as `judged`."""
        try:
            found = await self._asked(texts)
        except Exception as error:  # whatever it is, there is no judgement
            self._count(where, "failed")
            logger.warning("moderation of %s failed, %s: %s", where, self.settings.on_failure, _said(error))
            if self.settings.on_failure == "fail_open":
                return None
            raise moderation_unavailable() from None
        for one in found:
            self._count(where, "flagged" if self._flagged(one) else "passed")
        return found

    async def _asked(self, texts: Sequence[str]) -> list[Judgement]:
        keys = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        if missing:
            self._known.update(zip(missing, await self._ask([*missing.values()]), strict=True))
        found = [self._known[key] for key in keys]
        for key in keys:
            self._known.move_to_end(key)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return found

    async def _ask(self, texts: Sequence[str]) -> list[Judgement]:
        """Judgements of the judge's own.

        Raises:
            Exception: it gives none; or it is left alone.
        """
        if self._now() < self._alone_until:
            raise ModerationError("the moderator has failed just now, and is left alone for some seconds")
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                found = await self.judge.judge(texts)
        except Exception:
            self._num_failed += 1
            if self._num_failed >= 2:
                self._alone_until = self._now() + ALONE_S
            raise
        self._num_failed = 0
        return found

    async def endpoint(self, texts: Sequence[str], request_id: str) -> ModerationList:
        """What `POST /v1/moderations` answers.

        Raises:
            ApiError: the moderator is down, whatever is to pass otherwise: nobody asked for a guess.
        """
        found = await self.judgements(texts, "endpoint")
        if found is None:
            raise moderation_unavailable()
        model = self.settings.model or self.settings.kind
        return ModerationList(id=request_id, model=model, results=[self._result(one) for one in found])

    def _result(self, judgement: Judgement) -> ModerationResult:
        flagged = self._flagged(judgement)
        names = dict.fromkeys([*CATEGORIES, *judgement.scores, *sorted(flagged)])
        return ModerationResult(
            flagged=bool(flagged),
            categories={name: name in flagged for name in names},
            category_scores={name: judgement.scores.get(name, 0.0) for name in names},
            category_applied_input_types={name: ["text"] if name in self.judge.assessed else [] for name in names},
            not_assessed=[name for name in CATEGORIES if name not in self.judge.assessed],
        )

    def _flagged(self, judgement: Judgement) -> frozenset[str]:
        return judgement.with_thresholds(self.settings.thresholds) - {*self.settings.allowed}


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


@dataclass
class _Window:
    """Of one answer: pieces that are held back, their text, and the end of the text before."""

    held: list[Delta] = field(default_factory=list)
    text: str = ""
    before: str = ""
    is_over: bool = False

    def is_due(self, num_characters: int) -> bool:
        """Whether it is to be judged: long enough, and at the end of a sentence or twice as long."""
        if len(self.text) < num_characters:
            return False
        return len(self.text) >= 2 * num_characters or bool(_SENTENCE_END.search(self.text))


def _context(text: str, most: int) -> str:
    """Of the last `most` characters of a text those from the first whole sentence on, or the first whole word."""
    if len(text) <= most:
        return text
    end = text[-most:]
    starts = [found.end() for pattern in (_SENTENCE_BEGIN, _WORD_BEGIN) if (found := pattern.search(end))]
    return next((end[start:] for start in starts if start <= most / 2), end)  # half of it at least is kept


class ModeratedBackend:
    """Asks `backend`, and tells what passes. What is not generation goes through."""

    def __init__(self, backend: Backend, moderating: Moderating) -> None:
        self._backend = backend
        self._moderating = moderating
        self._settings = moderating.settings

    async def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        """Yield the answers as far as they pass.

        Raises:
            ApiError: the input is refused, or the moderator is down.
        """
        if "input" in self._settings.applies_to:
            flagged = await self._flagged_input(job)
            if flagged and self._settings.refusal == "error":
                raise refused_by_moderation(sorted(flagged), job.param)
            if flagged:
                for index in range(len(job.prompts) * job.num_answers):
                    yield Delta("", 0, 0, "content_filter", index)
                return
        async with aclosing(self._backend.generate(job)) as deltas:
            if "output" not in self._settings.applies_to:
                async for delta in deltas:
                    yield delta
                return
            async with aclosing(self._windows(deltas, len(job.prompts) * job.num_answers)) as passed:
                async for delta in passed:
                    yield delta

    async def embed(self, job: EmbeddingJob) -> Embeddings:
        """Embed the texts."""
        return await self._backend.embed(job)

    async def tokenize(self, job: TokenizeJob) -> Tokens:
        """The ids of the prompt."""
        return await self._backend.tokenize(job)

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """The text of ids."""
        return await self._backend.detokenize(token_ids)

    async def state(self) -> ModelState:
        """Whether a job can be done now."""
        return await self._backend.state()

    async def _flagged_input(self, job: Job) -> frozenset[str]:
        texts = [text for prompt in job.prompts for text in await self._texts(prompt) if text]
        found = await self._moderating.judged(texts, "input") if texts else []
        return frozenset().union(*found)

    async def _texts(self, prompt: Prompt) -> list[str]:
        """All that a client says in a prompt: it writes the assistant's messages and the descriptions of tools too."""
        if isinstance(prompt, ChatPrompt):
            return [*map(_said_in, prompt.messages), *(json.dumps(tool, ensure_ascii=False) for tool in prompt.tools)]
        return [prompt.text if isinstance(prompt, TextPrompt) else await self._backend.detokenize(prompt)]

    async def _windows(self, deltas: AsyncGenerator[Delta, None], num_answers: int) -> AsyncGenerator[Delta, None]:
        windows: defaultdict[int, _Window] = defaultdict(_Window)
        num_left = num_answers
        async for delta in deltas:
            window = windows[delta.index]
            if window.is_over:
                continue
            window.held.append(delta)
            window.text += "".join((delta.text, *(call.arguments for call in delta.calls)))
            if not window.is_due(self._settings.window_characters) and not delta.finish_reason:
                continue
            is_flagged = bool(window.text) and any(
                await self._moderating.judged([window.before + window.text], "output")
            )
            if is_flagged:
                window.held = [replace(delta, text="", logprobs=(), calls=(), finish_reason="content_filter")]
            for piece in window.held:
                yield piece
            window.is_over = is_flagged or bool(delta.finish_reason)
            num_left -= window.is_over
            if not num_left:
                return
            window.before = _context(window.before + window.text, max(_CONTEXT, self._settings.window_characters))
            window.held, window.text = [], ""


def _said_in(message: Mapping[str, Any]) -> str:
    """Name, text and calls of a message."""
    calls = (json.dumps(call.get("function", call), ensure_ascii=False) for call in message.get("tool_calls") or ())
    parts = (message.get("name"), message.get("content"), *calls)
    return "\n".join(part for part in parts if isinstance(part, str))


def moderated(backend: Backend, moderating: Moderating | None) -> Backend:
    """`backend`, moderated if anything is."""
    return backend if moderating is None else ModeratedBackend(backend, moderating)
