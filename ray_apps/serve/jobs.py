"""What the API asks of a model, and what comes back. Plain data: the deployments put a process boundary in between."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ray_apps.engine.protocol import FinishReason, SamplingParams


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages for the model's chat template, and the tools that the assistant may call, both as OpenAI has them."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A text as it is. `add_special_tokens`: with those that the tokenizer puts around one by itself."""

    text: str
    add_special_tokens: bool = True


Truncation = Literal["off", "oldest_turns"]
"""Of a chat that is too long: refuse it, or leave its oldest rounds out."""


@dataclass(frozen=True, slots=True)
class CalledTool:
    """A call that the assistant made; `arguments` are a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CallRules:
    """Whether calls of tools are looked for in an answer. `demanded`: it is one, by the schema of its sampling.

    `several`: whether more than the first call counts.
    """

    demanded: bool = False
    several: bool = True


Prompt = ChatPrompt | TextPrompt | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts to continue, each `num_answers` times. `max_tokens` None: each as long as the context allows.

    `sampling` holds the rest; its own `max_tokens` is not looked at. `echo`: an answer begins with its prompt, with
    log probabilities of the prompt's tokens if `sampling` asks for any. `adapter`: the one to ask the model through.
    `param`: the field of the request that has the prompts. `session`: what the turns of one chat have in common.
    `streams`: whether the client is told each piece as it comes. `calls`: None where no tools are offered.
    `truncate`: what to do with a chat that is too long; None: as the model's settings have it.
    """

    request_id: str
    prompts: tuple[Prompt, ...]
    max_tokens: int | None = None
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=0))
    num_answers: int = 1
    echo: bool = False
    adapter: str | None = None
    param: str = "messages"
    session: str = ""
    streams: bool = False
    calls: CallRules | None = None
    truncate: Truncation | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A replica has taken a job on; this is the first it says of it."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The prompts of a job have so many tokens together, and the work on them begins."""

    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """The bytes of a token and its log probability, with those that were likeliest in its place.

    The first token of a prompt has no probability. `special`: how one is spelled that has no bytes in a text.
    """

    token: bytes
    logprob: float | None
    likeliest: tuple["ScoredToken", ...] = ()
    special: str = ""


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of answer `index`: text, and calls after it; with the tokens of all answers so far.

    Answers are numbered prompt by prompt. `worked_s`: how long the replica has been at the job; `first_worked_s`: how
    long it had been when there was anything to tell. `num_dropped`: messages of the chat that were left out, for it was
    too long.
    """

    text: str
    num_prompt_tokens: int
    num_completion_tokens: int
    finish_reason: FinishReason | Literal["tool_calls", "content_filter"] | None = None
    index: int = 0
    logprobs: tuple[ScoredToken, ...] = ()
    num_cached_tokens: int = 0
    worked_s: float = 0.0
    first_worked_s: float = 0.0
    calls: tuple[CalledTool, ...] = ()
    num_dropped: int = 0


@dataclass(frozen=True, slots=True)
class EmbeddingJob:
    """Texts to embed. `param`: the field of the request that has them."""

    request_id: str
    prompts: tuple[Prompt, ...]
    adapter: str | None = None
    param: str = "input"


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A vector of length 1 for each text, and how many tokens they have together."""

    vectors: tuple[tuple[float, ...], ...]
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TokenizeJob:
    """A prompt of which the ids are asked for. `param`: the field of the request that has it."""

    prompt: Prompt
    param: str = "prompt"


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids of a prompt, and the most that the model reads."""

    token_ids: tuple[int, ...]
    max_model_len: int


ModelState = Literal["ready", "starting", "asleep", "waking", "unavailable"]
"""A model can be asked; it is being loaded; no replica runs until somebody asks; one is being started because somebody
does; or it cannot be asked, for a reason that is in the server's log."""


class Backend(Protocol):
    """Whatever answers for one model, with its adapters. Every method may raise an `ApiError`."""

    def generate(self, job: Job) -> AsyncGenerator[Delta, None]:
        """Yield the answers piece by piece; closing the generator stops the work.

        Raises:
            ApiError: before the first piece or after any.
        """
        ...

    async def embed(self, job: EmbeddingJob) -> Embeddings:
        """Embed the texts."""
        ...

    async def tokenize(self, job: TokenizeJob) -> Tokens:
        """The ids of the prompt."""
        ...

    async def detokenize(self, token_ids: tuple[int, ...]) -> str:
        """The text of ids."""
        ...

    async def state(self) -> ModelState:
        """Whether a job can be done now."""
        ...
