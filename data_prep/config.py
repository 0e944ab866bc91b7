"""Strict settings: the base of every settings class, one-line errors, and the `data` section of a recipe."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep.chat_template import TEMPLATES
from data_prep.errors import ConfigError


class Settings(BaseModel):
    """Base of every settings class: frozen, and an unknown field is an error.

    Numbers stay numbers: a string is never read as a number or a truth value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @classmethod
    def parse(cls, values: Mapping[str, Any], section: str = "") -> Self:
        """Validate `values`, naming fields as `section.field` in errors.

        Raises:
            ConfigError: one line per wrong field: its name, its value and what would be valid.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(describe_errors(cls, error, section)) from None


def describe_errors(settings: type[BaseModel], error: ValidationError, section: str = "") -> str:
    """Render a validation error as one line per field: name, value, what would be valid."""
    details: dict[tuple[str | int, ...], Any] = {}
    for detail in error.errors():
        location = detail["loc"] if detail["type"] == "extra_forbidden" else _field_location(settings, detail["loc"])
        message = re.sub(r"^(Value error, |\w+ should (be|have) )", "", detail["msg"])
        if location in details:
            details[location]["msg"] += f" or {message}"
        else:
            details[location] = {**detail, "loc": location, "msg": message}
    return "\n".join(_describe(settings, detail, section) for detail in details.values())


def _describe(settings: type[BaseModel], detail: Any, section: str) -> str:
    location = [str(part) for part in detail["loc"]]
    name = ".".join([section, *location] if section else location) or "settings"
    if detail["type"] == "extra_forbidden":
        valid = _field_names(settings, location[:-1])
        close = difflib.get_close_matches(location[-1], valid, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        return f"{name}: unknown field{hint} Valid fields: {', '.join(valid)}"
    if detail["type"] == "missing":
        return f"{name}: is required"
    message = detail["msg"]
    if detail["type"] == "value_error":
        of_a_field = message.partition(":")[0] in _field_names(settings, location)
        return ".".join([*filter(None, [section]), *location, message]) if of_a_field else f"{name}: {message}"
    return f"{name}: {detail['input']!r} is not valid; expected {message}"


def _field_location(settings: type[BaseModel], location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """`location` without the names of a union's alternatives, each of which pydantic reports by itself."""
    for depth, part in enumerate(location):
        if isinstance(part, str) and part not in _field_names(settings, list(map(str, location[:depth]))):
            return location[:depth]
    return location


def _field_names(settings: type[BaseModel], path: list[str]) -> list[str]:
    """Names of the fields of the settings class found by following `path` from `settings`."""
    for part in path:
        field = settings.model_fields.get(part)
        if field is None:
            continue
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                settings = candidate
    return sorted(settings.model_fields)


def _is_on_a_disk(path: str) -> str:
    if "://" in path:
        raise ValueError(f"{path!r} must be a path on a disk; only models are read from object storage")
    return os.path.expanduser(path)  # keeps `./demo`, which is not the keyword `demo`


DiskPath = Annotated[str, Field(min_length=1), AfterValidator(_is_on_a_disk)]
"""A file or directory on a disk that every node sees."""


def real_path(path: str) -> Path:
    """Where `path` leads, whether anything is there or not; never raises, not even for a loop of links."""
    return Path(os.path.realpath(os.path.expanduser(path)))


class IdentityConfig(Settings):
    """Conversations in which the model says who it is."""

    name: str = Field("Vicuna", min_length=1)
    """What the model calls itself."""
    maker: str = Field("LMSYS", min_length=1)
    """Who it says it was made by."""
    count: int | None = Field(None, ge=1)
    """How many conversations; all there are if not given."""


DEMO = "demo"
"""The source that names the chats that come along."""


class DataConfig(Settings):
    """The `data` section of a recipe: from raw chats to a dataset."""

    output: DiskPath
    """Directory the dataset is written to."""
    tokenizer: str
    """The model whose tokenizer is used: a directory, an `s3://` path or a hub id."""
    sources: list[DiskPath] = []
    """Files, folders or globs of chats: ShareGPT JSON arrays or JSONL. `demo` names the chats that come along."""
    identity: IdentityConfig | None = None
    """Adds conversations in which the model says who it is."""
    template: str = "vicuna_v1.1"
    """Chat template of the rows and of the model trained on them."""
    context_length: int = Field(2048, ge=16)
    """Tokens a row may hold. Longer chats are split between rounds."""
    pack: bool = True
    """Put several chats into one row. Without it, each chat is a row."""
    eval_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of chats held out for evaluation, chosen by a hash of their id; the parts of a chat stay together."""
    group_size: int = Field(2048, ge=1)
    """Records that are packed together. Rows depend on it, not on the number of processes."""

    @model_validator(mode="after")
    def _has_input(self) -> Self:
        if not self.sources and self.identity is None:
            raise ValueError("give sources, identity, or both")
        output = real_path(self.output)
        folders = [source for source in self.sources if source != DEMO]
        if above := [source for source in folders if output.is_relative_to(real_path(source))]:
            raise ValueError(f"output: {self.output!r} is not outside of the source {above[0]!r}")
        if self.template not in TEMPLATES:
            raise ValueError(f"template: {self.template!r} is unknown; valid: {', '.join(sorted(TEMPLATES))}")
        return self
