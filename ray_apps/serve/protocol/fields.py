"""What the bodies of several routes have in common: kinds of values, and the fields that say how an answer is sampled.

A field is honoured, or it changes nothing about the answer and is ignored, or it may only have a value that asks for
nothing (`refuse_unless_neutral`). Anything else is refused: no request is answered as if it had said something else.
"""

import re
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

MAX_ANSWERS = 128
MAX_MESSAGES = 4096
"""Messages in a chat, and parts in a message."""
MAX_TOKEN_IDS = 1_000_000
_MAX_STOP_STRINGS = 4
_MAX_STOP_CHARACTERS = 1000
_MAX_STOP_TOKENS = 64
_MAX_BIASES = 1024
_TOKEN_ID = re.compile("0|[1-9][0-9]{0,18}")


def check_unicode(text: str) -> str:
    """`text`, unless it cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "invalid_unicode", "is not valid Unicode: it holds half of a surrogate pair"
        ) from None
    return text


def _as_list(stop: Any) -> Any:
    if stop is None:
        return []
    if isinstance(stop, str):
        return [stop]
    if isinstance(stop, list):
        return stop
    raise PydanticCustomError("invalid_type", "should be a string or a list of strings")


def _as_token_ids(biases: Any) -> Any:
    """JSON has no numbers for keys."""
    if not isinstance(biases, dict):
        return biases
    if not all(map(_TOKEN_ID.fullmatch, biases)):
        raise PydanticCustomError("invalid_type", "should map ids of tokens, such as '50', to biases")
    return {int(token): bias for token, bias in biases.items()}


def refuse_unless_neutral(value: Any, neutral: tuple[Any, ...]) -> None:
    """Refuse a value that asks for something. Null never does, `neutral` are others that do not."""
    if value is None or any(type(value) is type(allowed) and value == allowed for allowed in neutral):
        return
    raise PydanticCustomError("unsupported_parameter", "is not supported by this server with this value; leave it out")


Item = TypeVar("Item")
Items = Annotated[list[Item], Field(fail_fast=True)]
"""A list of which the first wrong item is told: to tell all of them takes a kilobyte for each."""
Text = Annotated[str, AfterValidator(check_unicode)]
StopString = Annotated[Text, Field(min_length=1, max_length=_MAX_STOP_CHARACTERS)]
StopStrings = StopString | Annotated[Items[StopString], Field(max_length=_MAX_STOP_STRINGS)] | None
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class Wire(BaseModel):
    """A body, or a part of one: strict, and nothing in it is overlooked."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StreamOptions(Wire):
    """`include_usage` asks for a last chunk with token counts; obfuscation is a matter of transport, and ignored."""

    include_obfuscation: bool | None = None
    include_usage: bool | None = None


class SamplingFields(Wire):
    """The fields of every request for answers."""

    model: str
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[int, Bias], BeforeValidator(_as_token_ids)] | None = Field(None, max_length=_MAX_BIASES)
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    presence_penalty: Penalty | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[Items[StopString], BeforeValidator(_as_list, json_schema_input_type=StopStrings)] = Field(
        default=[], max_length=_MAX_STOP_STRINGS
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    user: Any = None

    # Not OpenAI's: those that other open servers have too.
    ignore_eos: bool | None = None
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10, allow_inf_nan=False)
    stop_token_ids: Items[int] | None = Field(None, max_length=_MAX_STOP_TOKENS)
    top_k: int | None = Field(None, ge=-1)

    @field_validator("stream_options")
    @classmethod
    def _needs_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise PydanticCustomError("invalid_value", "is only allowed when 'stream' is true")
        return value

    @property
    def num_answers(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)
