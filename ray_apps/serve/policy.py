"""Who may ask, how much, and what is written down of it: settings of the whole endpoint."""

import os

from pydantic import Field, field_validator

from data_prep.config import DiskPath, Settings


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
