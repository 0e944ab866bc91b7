"""What an engine is: prompt ids in, pieces of text out.

Everything that crosses a process is plain data. An engine knows nothing of HTTP, and whoever uses one knows nothing of
torch: the engine also turns chat messages into ids, by its model's own template.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]

MAX_SCHEMA_CHARACTERS = 100_000
"""Of a JSON schema as text, whether an answer is to follow it or a tool is described by it."""


class EngineError(RuntimeError):
    """Generation failed, or the engine is no longer running."""


class EngineStoppedError(EngineError):
    """The engine is beyond help, whatever it is asked. Another one may answer the same request."""


class SamplingError(ValueError):
    """A model cannot sample as it is asked to; `param` names the field of `SamplingParams`."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedError(ValueError):
    """An engine, or its model, has no such thing; the text names what it is asked for, and what would be valid."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when an answer ends.

    `max_tokens` bounds the answer. `temperature` 0 takes the likeliest token; `top_p` keeps the smallest set of tokens
    with that much probability, `top_k` the likeliest (0: all), `min_p` those at least that likely as the likeliest.
    `presence_penalty` is taken from the logits of tokens that the answer has, `frequency_penalty` as often as it has
    them; `repetition_penalty` divides what is positive of those that prompt or answer have, and multiplies the rest
    (Keskar et al. 2019, 4.1). `logit_bias`: pairs of a token and what is added to its logit. `stop` strings and
    `stop_token_ids` end an answer and are not part of it. `logprobs`: how many of the likeliest tokens are told with
    each token's own log probability; None: none are. `json_schema`: what the answer is to follow, as JSON text.
    `ignore_eos`: the model's own end tokens end nothing. Equal seeds give equal answers on one machine; None draws a
    fresh one.
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
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue. `prompt_ids` and `max_tokens` together fit in the engine's `max_model_len`.

    `max_tokens` 0 is for `prompt_logprobs`: how many of the likeliest tokens are told with the log probability of each
    token of the prompt; None: none are. `adapter`: the name of the one through which the model is asked. `goes_on`: the
    prompt is a text, not a chat, so that a space at the start of the answer stands between the two and is kept.
    `group`: what all answers to one client's request have in common; None: there are no others.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    prompt_logprobs: int | None = None
    adapter: str | None = None
    goes_on: bool = False
    group: str | None = None


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
    they were asked for. `num_cached`: how many tokens of the prompt did not have to be read again. `prompt_logprobs`:
    in the first piece, if they were asked for, those of the prompt's tokens from the second on.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    num_cached: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine does now, and what it has done since it started.

    `num_running` requests are worked on and `num_waiting` are not yet. `cache_usage`: the share of the room for keys
    and values that requests under way take, 0 to 1. `num_prompt_tokens` counts what prompts had, `num_cached_tokens`
    those of them that were not read again, and `num_generated_tokens` what was answered.
    """

    num_running: int = 0
    num_waiting: int = 0
    cache_usage: float = 0.0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0


class Engine(Protocol):
    """Generation on one replica. It may run requests one by one or in a batch; each sees only its own answer."""

    @property
    def max_model_len(self) -> int:
        """The most tokens a prompt and its answer may have together."""
        ...

    @property
    def vocab_size(self) -> int:
        """Every id of a token is below it."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template, as Jinja."""
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

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Ids of `messages` (`role`, `content`, …), ready for the assistant's answer. Safe to call from any thread.

        `tools`: what the assistant may call, as OpenAI describes it, for a template that takes them.

        Raises:
            ModelError: the model has no chat template.
            ValueError: the template refuses the messages; the text says why.
        """
        ...

    def encode_text(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a whole text, in which special tokens may be spelled out. Safe to call from any thread.

        `add_special_tokens`: with those that the tokenizer puts around a text by itself.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids below `vocab_size`, special tokens spelled out. Safe to call from any thread."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenDelta, None]:
        """Yield the answer to `request` piece by piece. Closing the generator stops the work on it.

        Raises:
            EngineError: generation failed.
            SamplingError: as `check_sampling`.
            UnsupportedError: there is no such adapter, or no log probabilities of a prompt.
        """
        ...

    async def embed(self, prompt_ids: Sequence[int]) -> list[float]:
        """The mean of the model's last hidden states over the tokens of a text. Cancelling the task stops the work.

        Raises:
            EngineError: it failed.
            UnsupportedError: the engine gives no embeddings.
        """
        ...

    def stats(self) -> EngineStats:
        """What it does now. Quick, and safe to call from any thread."""
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
