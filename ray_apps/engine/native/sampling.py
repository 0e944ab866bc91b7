"""Choosing the next tokens from logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_apps.engine.grammar import Grammar
from ray_apps.engine.protocol import SamplingParams, TokenLogprob

MIN_TEMPERATURE = 1e-5
"""Below it the likeliest token is certain to more than float32 can tell, and the division would overflow."""

_LIKELIEST = 1024
"""Tokens among which a nucleus is sought before all are sorted."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token of one sequence."""

    token: int
    logprob: TokenLogprob | None = None


class Sampler:
    """Chooses the tokens of one sequence, with random numbers of its own."""

    def __init__(
        self,
        sampling: SamplingParams,
        prompt_ids: Sequence[int],
        device: torch.device,
        grammar: Grammar | None = None,
    ) -> None:
        self.sampling = sampling
        self._grammar = grammar
        self._generator = make_generator(sampling, device)
        self._bias = _Bias(sampling, prompt_ids, device) if _changes_logits(sampling) else None

    @property
    def takes_likeliest(self) -> bool:
        """Whether the likeliest token is all it wants to know."""
        plain = self._bias is None and self._grammar is None
        return plain and self.sampling.logprobs is None and self.sampling.temperature < MIN_TEMPERATURE

    def choose(self, logits: Tensor) -> Choice:
        """The next token, from `logits` `[vocabulary]`.

        Raises:
            SamplingError: the answer's grammar cannot be followed further.
        """
        logits = logits.float()
        changed = logits if self._bias is None else self._bias.apply(logits)
        if self._grammar is not None:
            changed = self._grammar.apply(changed)
        token = draw(changed, self.sampling, self._generator)
        if self._grammar is not None:
            self._grammar.accept(token)
        if self._bias is not None:
            self._bias.count(token)
        return Choice(token, None if self.sampling.logprobs is None else logprob(logits, token, self.sampling.logprobs))


def make_generator(sampling: SamplingParams, device: torch.device) -> torch.Generator:
    """A sequence's own random numbers: the same for the same seed, fresh without one."""
    generator = torch.Generator(device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def draw(logits: Tensor, sampling: SamplingParams, generator: torch.Generator) -> int:
    """Draw one token from `logits` `[vocabulary]`; the likeliest one at temperature 0."""
    if sampling.temperature < MIN_TEMPERATURE:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_k or sampling.min_p or sampling.top_p < 1:
        probabilities = truncate(probabilities, sampling)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def truncate(probabilities: Tensor, sampling: SamplingParams) -> Tensor:
    """Zero the tokens that `top_k`, `min_p` and `top_p` leave out; the likeliest stays. `[vocabulary]`, unnormalised.

    Of `top_p` the probabilities are those among the tokens that the other two leave, as where filters follow one
    another. Nucleus: Holtzman et al. 2020. min-p: Nguyen et al. 2024.
    """
    size = len(probabilities)
    kept, order = probabilities.topk(min(size, sampling.top_k or _LIKELIEST))
    if not sampling.top_k and len(kept) < size and not _holds_all(kept, sampling):
        kept, order = probabilities.sort(descending=True)
    whole = kept.sum() if sampling.top_k else probabilities.sum()
    if sampling.min_p:
        kept = kept * (kept >= sampling.min_p * kept[0])
        whole = kept.sum()
    before = kept.cumsum(-1) - kept
    kept = kept * ((before < sampling.top_p * whole) | (before <= 0))
    return torch.zeros_like(probabilities).scatter(-1, order, kept)


def _holds_all(likeliest: Tensor, sampling: SamplingParams) -> bool:
    """Whether the tokens that are kept are all among `likeliest`, in falling order."""
    if sampling.min_p:
        return bool(likeliest[-1] < sampling.min_p * likeliest[0])
    return bool(likeliest[:-1].sum() >= sampling.top_p)


def logprob(logits: Tensor, token: int, num_likeliest: int) -> TokenLogprob:
    """Of `token`, and of the likeliest ones, in falling order."""
    return logprobs_of(logits[None], [token], num_likeliest)[0]


def logprobs_of(logits: Tensor, tokens: Sequence[int], num_likeliest: int) -> list[TokenLogprob]:
    """Of each of `tokens` after its row of `logits` `[tokens, vocabulary]`, with those of the likeliest ones there."""
    logprobs = torch.log_softmax(logits, dim=-1)
    own = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(min(num_likeliest, logprobs.shape[-1]))
    likeliest = (tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True))
    return [TokenLogprob(*one) for one in zip(tokens, own, likeliest, strict=True)]


def _changes_logits(sampling: SamplingParams) -> bool:
    penalties = (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty - 1)
    return any(penalties) or bool(sampling.logit_bias)


class _Bias:
    """What a sequence's penalties and biases do to the logits."""

    def __init__(self, sampling: SamplingParams, prompt_ids: Sequence[int], device: torch.device) -> None:
        self._sampling = sampling
        self._device = device
        self._prompt = torch.tensor(sorted(set(prompt_ids)), dtype=torch.long, device=device)
        self._counts: dict[int, int] = {}
        tokens, biases = zip(*sampling.logit_bias, strict=True) if sampling.logit_bias else ((), ())
        self._biased = torch.tensor(tokens, dtype=torch.long, device=device)
        self._biases = torch.tensor(biases, dtype=torch.float32, device=device)

    def count(self, token: int) -> None:
        """The answer has this token."""
        self._counts[token] = self._counts.get(token, 0) + 1

    def apply(self, logits: Tensor) -> Tensor:
        """The logits `[vocabulary]` as they are changed."""
        sampling, logits = self._sampling, logits.clone()
        answered = torch.tensor(list(self._counts), dtype=torch.long, device=self._device)
        if sampling.repetition_penalty != 1:
            seen = torch.cat([self._prompt, answered]).unique()
            values = logits[seen]
            penalty = sampling.repetition_penalty
            logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        counts = torch.tensor(list(self._counts.values()), dtype=torch.float32, device=self._device)
        logits[answered] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        logits[self._biased] += self._biases
        return logits
