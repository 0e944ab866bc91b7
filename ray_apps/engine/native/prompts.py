"""What is asked about a prompt itself: the log probabilities of its tokens, and the mean of its last hidden states."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ray_apps.engine.native.sampling import logprobs_of
from ray_apps.engine.protocol import TokenLogprob

_ROWS = 64
"""Positions of which the probabilities of all tokens are held at a time."""


class PromptScorer:
    """Gathers the log probabilities of a prompt's tokens from the second on, as the prompt is read."""

    def __init__(self, prompt_ids: Sequence[int], num_likeliest: int) -> None:
        self.scored: list[TokenLogprob] = []
        self._prompt_ids = prompt_ids
        self._num_likeliest = num_likeliest

    def take(self, start: int, logits: Tensor) -> None:
        """Take the logits `[tokens, vocabulary]` after the tokens from position `start` on."""
        following = self._prompt_ids[start + 1 : start + 1 + len(logits)]
        for first in range(0, len(following), _ROWS):
            ids = following[first : first + _ROWS]
            self.scored += logprobs_of(logits[first : first + len(ids)].float(), ids, self._num_likeliest)


class MeanState:
    """The mean of the last hidden states of a text, as they come."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def take(self, states: Tensor) -> None:
        """Take those of some tokens, `[tokens, size]`."""
        total = states.sum(dim=0, dtype=torch.float32)
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(states)

    def mean(self) -> list[float]:
        """Over all that were taken, `[size]`."""
        assert self._sum is not None
        values: list[float] = (self._sum / self._count).tolist()
        return values
