"""What an engine is: prompt ids in, pieces of text out.

Everything that crosses a process is plain data. An engine knows nothing of HTTP, and whoever uses one knows nothing of
torch: the engine also turns chat messages into ids, by its model's own template.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


class EngineError(RuntimeError):
    """Generation failed, or the engine is no longer running."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when an answer ends.

    `max_tokens` bounds the answer. `temperature` 0 takes the likeliest token; `top_p` keeps the smallest set of tokens
    with that much probability. `stop` strings end an answer and are not part of it. Equal seeds give equal answers on
    one machine; None draws a fresh one.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue. `prompt_ids` and `max_tokens` together fit in the engine's `max_model_len`."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """The next piece of an answer: whole characters, with the ids of every token taken since the piece before.

    The ids include an end token and the tokens of a stop string, which give no text. The last piece, and no other, has
    a `finish_reason`: `stop` at an end token or a stop string, `length` at `max_tokens`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None


class Engine(Protocol):
    """Generation on one replica. It may run requests one by one or in a batch; each sees only its own answer."""

    @property
    def max_model_len(self) -> int:
        """The most tokens a prompt and its answer may have together."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of `messages` (`role`, `content`), ready for the assistant's answer. Safe to call from any thread.

        Raises:
            ModelError: the model has no chat template.
            ValueError: the template refuses the messages; the text says why.
        """
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """Yield the answer to `request` piece by piece. Closing the generator stops the work on it.

        Raises:
            EngineError: generation failed.
        """
        ...

    async def check_health(self) -> None:
        """Return if the engine can answer.

        Raises:
            EngineError: it cannot, and should be replaced.
        """
        ...

    def shutdown(self) -> None:
        """Stop every request and release the model. Safe to call twice."""
        ...
