"""What the bodies of several routes have in common: kinds of values, and the fields that say how an answer is sampled.

A field is honoured, or it changes nothing about the answer and is ignored, or it may only have a value that asks for
nothing (`neutral`). Anything else is refused: no request is answered as if it had said something else.
"""

import re
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
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
_MAX_BIAS = 100
_ID = "(0|[1-9][0-9]{0,9})"


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
    """JSON has no numbers for keys. Each id has one spelling, or two keys could name the same token."""
    if not isinstance(biases, dict):
        return biases
    if not all(re.fullmatch(_ID, token) for token in biases):
        raise PydanticCustomError("invalid_type", "should map ids of tokens, such as '50', to biases")
    return {int(token): bias for token, bias in biases.items()}


def neutral(*values: Any) -> PlainValidator:
    """For a field that is not honoured: it may be null, or one of `values`, which ask for what happens anyway."""

    def refuse_others(value: Any) -> None:
        if value is None or any(type(value) is type(allowed) and value == allowed for allowed in values):
            return
        raise PydanticCustomError(
            "unsupported_parameter", "is not supported by this server with this value; leave it out"
        )

    described = Annotated[Any, WithJsonSchema({"enum": [None, *values]})]
    return PlainValidator(refuse_others, json_schema_input_type=described)


Item = TypeVar("Item")
Items = Annotated[list[Item], Field(fail_fast=True)]
"""A list of which the first wrong item is told: to tell all of them takes a kilobyte for each."""
Text = Annotated[str, AfterValidator(check_unicode)]
StopString = Annotated[Text, Field(min_length=1, max_length=_MAX_STOP_CHARACTERS)]
StopStrings = StopString | Annotated[Items[StopString], Field(max_length=_MAX_STOP_STRINGS)] | None
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-_MAX_BIAS, le=_MAX_BIAS, allow_inf_nan=False)]
_DescribedBiases = WithJsonSchema(
    {
        "type": "object",
        "propertyNames": {"pattern": f"^{_ID}$"},
        "additionalProperties": {"type": "number", "minimum": -_MAX_BIAS, "maximum": _MAX_BIAS},
        "maxProperties": _MAX_BIASES,
    }
)
Biases = Annotated[
    dict[int, Bias],
    Field(max_length=_MAX_BIASES),
    BeforeValidator(_as_token_ids, json_schema_input_type=Annotated[Any, _DescribedBiases]),
]


class Wire(BaseModel):
    """A body, or a part of one: strict, and nothing in it is overlooked."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StreamOptions(Wire):
    """`include_usage` asks for a last chunk with token counts; obfuscation is a matter of transport, and ignored.

    `continuous_usage_stats`, as vLLM has it, asks for the counts so far in every other chunk too.
    """

    include_obfuscation: bool | None = None
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(Wire):
    """The fields of every request for answers."""

    model: str
    frequency_penalty: Penalty | None = None
    logit_bias: Biases | None = None
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

    @property
    def counts_on_the_way(self) -> bool:
        """Whether every chunk has the token counts so far."""
        options = self.stream_options
        return options is not None and self.include_usage and bool(options.continuous_usage_stats)
