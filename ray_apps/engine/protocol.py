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


class SamplingError(ValueError):
    """A model cannot sample as it is asked to; `param` names the field of `SamplingParams`."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when an answer ends.

    `max_tokens` bounds the answer. `temperature` 0 takes the likeliest token; `top_p` keeps the smallest set of tokens
    with that much probability, `top_k` the likeliest (0: all), `min_p` those at least that likely as the likeliest.
    `presence_penalty` is taken from the logits of tokens that the answer has, `frequency_penalty` as often as it has
    them; `repetition_penalty` divides what is positive of those that prompt or answer have, and multiplies the rest
    (Keskar et al. 2019, 4.1). `logit_bias`: pairs of a token and what is added to its logit. `stop` strings and
    `stop_token_ids` end an answer and are not part of it. `logprobs`: how many of the likeliest tokens are told with
    each token's own log probability; None: none are. `json_schema`: what the answer is to follow, as JSON text. Equal
    seeds give equal answers on one machine; None draws a fresh one.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    json_schema: str | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue. `prompt_ids` and `max_tokens` together fit in the engine's `max_model_len`."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log probability under the model itself, before temperature, penalties and bias."""

    token_id: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """The next piece of an answer: whole characters, with the ids of every token taken since the piece before.

    The ids include an end token and the tokens of a stop string, which give no text. The last piece, and no other, has
    a `finish_reason`: `stop` at an end token or a stop string, `length` at `max_tokens`. `logprobs`: of each token, if
    they were asked for. `num_cached`: how many tokens of the prompt did not have to be read again.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    num_cached: int = 0


class Engine(Protocol):
    """Generation on one replica. It may run requests one by one or in a batch; each sees only its own answer."""

    @property
    def max_model_len(self) -> int:
        """The most tokens a prompt and its answer may have together."""
        ...

    def check_sampling(self, sampling: SamplingParams) -> None:
        """Return if the model can sample so. May take a second; safe to call from any thread.

        Raises:
            SamplingError: it cannot; the text says what would be valid.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text; nothing if it is a special one."""
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
            SamplingError: as `check_sampling`.
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
