"""The body of `POST /v1/completions`."""

from typing import Annotated, Any

from pydantic import Field, PlainValidator, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ray_apps.serve.protocol.fields import MAX_ANSWERS, MAX_TOKEN_IDS, SamplingFields, check_unicode, neutral

MAX_PROMPTS = 256
_DEFAULT_TOKENS = 16


def read_prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """One text or list of ids, or a list of either, as texts or ids."""
    if isinstance(value, str) or _holds_ids(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("invalid_type", "should be a string, a list of token ids, or a filled list of those")
    if len(value) > MAX_PROMPTS:
        raise PydanticCustomError("invalid_value", f"should be at most {MAX_PROMPTS} texts")
    return tuple(map(_read_prompt, value))


def _read_prompt(one: Any) -> str | tuple[int, ...]:
    if isinstance(one, str):
        return check_unicode(one)
    if _holds_ids(one):
        return tuple(one)
    raise PydanticCustomError("invalid_type", "should hold strings or filled lists of token ids")


def _holds_ids(value: Any) -> bool:
    if not isinstance(value, list) or not value or type(value[0]) is not int:
        return False
    if len(value) > MAX_TOKEN_IDS:
        raise PydanticCustomError("invalid_value", f"should be at most {MAX_TOKEN_IDS} token ids")
    return all(type(token) is int for token in value)


_TokenIds = Annotated[list[int], Field(min_length=1, max_length=MAX_TOKEN_IDS)]
_Several = Annotated[list[str | _TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
Prompts = Annotated[
    tuple[str | tuple[int, ...], ...],
    PlainValidator(read_prompts, json_schema_input_type=str | _TokenIds | _Several),
]


class CompletionRequest(SamplingFields):
    """What a client asks for. `logprobs`: how many of the likeliest tokens are told beside each token."""

    prompt: Prompts
    best_of: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    max_tokens: int | None = Field(None, ge=0)
    suffix: Annotated[None, neutral("")] = None

    @field_validator("best_of")
    @classmethod
    def _is_what_is_given_back(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value != (info.data.get("n") or 1):
            raise PydanticCustomError("invalid_value", "is not supported unless it is 'n'; leave it out")
        return value

    @field_validator("max_tokens")
    @classmethod
    def _is_0_only_for_an_echo(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value == 0 and not info.data.get("echo"):
            raise PydanticCustomError("invalid_value", "should be at least 1 unless 'echo' is true")
        return value

    @field_validator("prompt")
    @classmethod
    def _has_few_answers(cls, value: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        if len(value) * (info.data.get("n") or 1) > MAX_PROMPTS:
            raise PydanticCustomError("invalid_value", f"asks for more than {MAX_PROMPTS} answers with this 'n'")
        return value

    @property
    def answer_limit(self) -> int:
        """The most tokens an answer may have."""
        return _DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens
