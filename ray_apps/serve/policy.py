"""Who may ask, how much, and what is written down of it: settings of the whole endpoint."""

import os
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from data_prep.config import DiskPath, ModerationSettings, Settings, Threshold, off_for_false


class Security(Settings):
    """Who may ask."""

    api_keys_file: DiskPath | None = None
    """A file with `key` or `name: key` on each line, on every node; beside the keys of `VICUNA_API_KEYS`."""
    allow_open: bool = False
    """Whether other machines may ask though there is no key."""
    cors_origins: list[str] = Field(default=[])
    """Web pages that may ask from a browser, such as `https://chat.example.org`; `*` for all."""

    @field_validator("api_keys_file")
    @classmethod
    def _means_the_same_everywhere(cls, value: str | None) -> str | None:
        if value is not None and not os.path.isabs(value):
            raise ValueError(f"{value!r} is not valid; expected an absolute path, as it is read in another process")
        return value


class Limits(Settings):
    """How much one request, and one key, may ask for."""

    max_body_bytes: int = Field(4_000_000, ge=1000)
    """The longest body."""
    body_timeout_s: float = Field(30, gt=0)
    """Seconds in which a body has to arrive."""
    max_n: int = Field(16, ge=1)
    """The most answers to one prompt."""
    max_answers: int = Field(256, ge=1)
    """The most answers to one request, over all its prompts."""
    requests_per_minute: int | None = Field(None, ge=1)
    """Of one key; any number by default."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Of one key, of prompts and answers together; any number by default."""


class RequestLogging(Settings):
    """What is written down of each request."""

    requests: str | None = Field("stderr", min_length=1)
    """Where one line of JSON per request goes: `stderr`, which Ray keeps with its logs, a file, or null for nowhere."""
    texts: bool = False
    """Whether the lines have what was asked and answered."""


class Moderation(Settings):
    """What is judged, by whom, and what is done about it."""

    kind: Annotated[Literal["off", "local", "openai", "llm"], BeforeValidator(off_for_false)] = "off"
    """`local`: on this machine. `openai`: an endpoint of that API. `llm`: a guard model that is served here."""
    applies_to: list[Literal["input", "output"]] = Field(default=["input", "output"], min_length=1)
    """What is asked, what is answered, or both."""
    patterns: DiskPath | None = None
    """For `local`: YAML of regular expressions by category, instead of the model that comes with a package."""
    base_url: str = "https://api.openai.com/v1"
    """For `openai`: where the endpoint is; its key is OPENAI_API_KEY."""
    model: str | None = None
    """For `openai`: which moderator. For `llm`: the name of the served model that judges."""
    thresholds: dict[str, Threshold] = Field(default={})
    """Scores, 0 to 1, from which on a category counts; others count as the moderator says."""
    allowed: list[str] = Field(default=[])
    """Categories that never count."""
    on_failure: Literal["fail_closed", "fail_open"] = "fail_closed"
    """Whether, when the moderator is down, nothing is answered or everything."""
    refusal: Literal["error", "content_filter"] = "error"
    """What a flagged request gets: a 400, or an empty answer that ends with `content_filter`."""
    window_characters: int = Field(200, ge=1)
    """So much of an answer is held back until it has been judged."""
    timeout_s: float = Field(10, gt=0)
    """Seconds that a judgement may take."""

    @model_validator(mode="after")
    def _has_a_guard(self) -> Self:
        if self.kind == "llm" and not self.model:
            raise ValueError("model: is required for kind 'llm': the name of a model that is served here")
        return self

    @property
    def moderator(self) -> ModerationSettings:
        """Who is asked, as data preparation has it; not for `llm`."""
        fields: dict[str, Any] = {"kind": self.kind, "patterns": self.patterns, "base_url": self.base_url}
        fields |= {"thresholds": self.thresholds, "allowed": self.allowed}
        return ModerationSettings.model_validate(fields | ({"model": self.model} if self.model else {}))


class Page(Settings):
    """The chat page at `/`."""

    is_shown: bool | Literal["auto"] = False
    """Whether there is one; it needs the packages of the extra `ui`. `auto`: where they are installed."""
    votes: DiskPath | None = None
    """The file for votes and flags, on the head; none are asked for without it."""
    keeps_texts: bool = True
    """Whether a vote has the chats that it is about."""
    max_turns: int = Field(50, ge=1)
    """The most questions in one chat."""
    max_characters: int = Field(12_000, ge=1)
    """The longest message."""
