"""What the inference thread works on: answers, and texts that are only read."""

import asyncio
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ray_apps.engine.grammar import Grammar
from ray_apps.engine.native.adapters import Adapter
from ray_apps.engine.native.loading import LoadedModel
from ray_apps.engine.native.prompts import MeanState, PromptScorer
from ray_apps.engine.native.sampling import Choice, Sampler
from ray_apps.engine.protocol import EngineError, GenerationRequest, SamplingError, TokenDelta, TokenLogprob

Item = TokenDelta | EngineError | SamplingError | list[float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass gave: `logits` `[rows, vocabulary]` where they were wanted, the likeliest token of each row, and the
    last hidden states `[tokens, size]` of all tokens."""

    logits: Tensor
    likeliest: list[int]
    hidden: Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's share of a pass: its tokens from position `start` on are `tokens` of all, with `rows` of logits.

    `is_last`: it has no unread tokens after them.
    """

    start: int
    tokens: slice
    rows: slice
    is_last: bool


class Job(ABC):
    """A sequence under way. What there is to tell of it goes into `items`, on the event loop of the one who waits.

    `reuses`: what is in the cache already need not be read again for it. `adapter`: what it is read through beside the
    model. `group`: what jobs have in common that take turns with those of other groups. `finished`: nothing comes any
    more.
    """

    def __init__(
        self, prompt_ids: tuple[int, ...], *, reuses: bool, adapter: Adapter | None = None, group: object = None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.items: asyncio.Queue[Item] = asyncio.Queue()
        self.cancelled = threading.Event()
        self.ids = list(prompt_ids)
        self.num_cached = 0
        self.reuses = reuses
        self.adapter = adapter
        self.group = self if group is None else group
        self.finished = False

    @property
    def kind(self) -> object:
        """What is in the cache of this kind can be reused."""
        return None if self.adapter is None else self.adapter.key

    @abstractmethod
    def wanted(self, start: int, count: int, *, is_last: bool) -> range:
        """Of the `count` tokens from position `start` on, those after which logits are wanted."""

    @abstractmethod
    def take(self, part: Part, outcome: Outcome) -> Item | None:
        """Take what a pass gave; what can be told now, if anything.

        Raises:
            SamplingError: it cannot go on as it is asked to.
        """


class AnswerJob(Job):
    """A prompt to be continued."""

    def __init__(
        self,
        request: GenerationRequest,
        loaded: LoadedModel,
        grammar: Grammar | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        reuses = request.prompt_logprobs is None
        super().__init__(request.prompt_ids, reuses=reuses, adapter=adapter, group=request.group)
        self.max_tokens = request.sampling.max_tokens
        self._sampler = Sampler(request.sampling, request.prompt_ids, loaded.model.device, grammar)
        self._scorer = None
        if request.prompt_logprobs is not None:
            self._scorer = PromptScorer(request.prompt_ids, request.prompt_logprobs)
        self._answer = loaded.language.new_answer(request)

    def wanted(self, start: int, count: int, *, is_last: bool) -> range:
        """All while the prompt is scored, otherwise the last."""
        if self._scorer is not None:
            return range(start, start + count)
        return range(start + count - is_last, start + count)

    def take(self, part: Part, outcome: Outcome) -> TokenDelta | None:
        """Take the logits after its tokens; after the last of them, choose the next token."""
        if self._scorer is not None:
            self._scorer.take(part.start, outcome.logits[part.rows])
        if not part.is_last:
            return None
        if not self.max_tokens:
            self.finished = True
            return TokenDelta("", (), "length", (), self.num_cached, self._take_scored())
        row = part.rows.stop - 1
        takes_likeliest = self._sampler.takes_likeliest
        choice = Choice(outcome.likeliest[row]) if takes_likeliest else self._sampler.choose(outcome.logits[row])
        self.ids.append(choice.token)
        delta = self._answer.push(
            choice.token, choice.logprob, num_cached=self.num_cached, prompt_logprobs=self._take_scored()
        )
        self.finished = self._answer.finished
        return delta

    def _take_scored(self) -> tuple[TokenLogprob, ...]:
        if self._scorer is None:
            return ()
        scored, self._scorer = self._scorer.scored, None
        return tuple(scored)


class EmbeddingJob(Job):
    """A text of which the mean of the last hidden states is asked for. All such texts are one group."""

    def __init__(self, prompt_ids: tuple[int, ...]) -> None:
        super().__init__(prompt_ids, reuses=False, group=EmbeddingJob)
        self._states = MeanState()

    def wanted(self, start: int, count: int, *, is_last: bool) -> range:
        """None: hidden states are enough."""
        return range(0)

    def take(self, part: Part, outcome: Outcome) -> list[float] | None:
        """Take the hidden states of its tokens; the mean, after the last of them."""
        self._states.take(outcome.hidden[part.tokens])
        self.finished = part.is_last
        return self._states.mean() if part.is_last else None
