"""Strict settings: the base of every settings class, one-line errors, and the `data` section of a recipe."""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

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


CHUNK_SIZE = 512
DEMO = "demo"
"""The source that names the chats that come along."""


def _is_a_source(path: str) -> str:
    scheme, separator, _ = path.partition("://")
    if separator and scheme != "s3":
        raise ValueError(f"{path!r} has the unknown scheme {scheme!r}; expected a path on a disk or s3://bucket/key")
    return path if separator else os.path.expanduser(path)


SourcePath = Annotated[str, Field(min_length=1), AfterValidator(_is_a_source)]
"""A file, folder or glob, on a disk or on `s3://`; `demo` names the chats that come along."""


class SourceConfig(Settings):
    """Chats of one origin."""

    path: SourcePath
    """A file, folder or glob, on a disk or on `s3://`; `demo` names the chats that come along."""
    weight: float = Field(1.0, gt=0, le=10)
    """How often each chat is taken: 0.25 takes every fourth, chosen by a hash of its id; 3 takes each three times."""
    max_records: int | None = Field(None, ge=1)
    """Records that are read at most, from the start; all if not given."""


class FilterSettings(Settings):
    """Which answers are masked, and which chats are left out."""

    min_turns: int = Field(2, ge=2)
    """Messages a chat needs at least, the system message aside."""
    min_characters: int = Field(1, ge=0)
    """Characters its answers need at least, together."""
    keep_languages: list[str] = []
    """Language codes (`en`, `zh`, `zh-Hant`, `un` for unknown) of the chats to keep; all if empty."""
    skip_languages: list[str] = []
    """Language codes of chats to leave out."""
    empty_answers: bool = True
    """Mask answers without a visible character."""
    error_messages: bool = True
    """Mask what a service wrote in place of an answer, such as a rate limit."""
    blocked_phrases: list[Annotated[str, Field(min_length=1)]] = []
    """Mask answers that hold one of these, in whatever case."""
    plugin_chats: bool = True
    """Mask what a plugin was asked and answered."""
    broken_lists: bool = True
    """Mask answers with a numbered list in which items that follow each other have the same number."""
    max_digit_run: int | None = Field(None, ge=1)
    """Mask answers in which a digit is repeated more often in a row."""
    max_non_printable: float | None = Field(0.1, ge=0, le=1)
    """Mask answers with a larger share of control, private or undecodable characters."""
    max_repeated_lines: float | None = Field(None, ge=0, le=1)
    """Mask answers with a larger share of lines that stood there before."""


class DedupSettings(Settings):
    """Which chats count as the same. The first in record order stays."""

    exact: bool = True
    """The same id, or the same first exchange but for case and white space."""
    near: float | None = Field(None, gt=0, le=1)
    """Chats whose word shingles have at least this Jaccard similarity, as MinHash estimates it; off if not given."""
    shingle_words: int = Field(5, ge=1)
    """Words of a shingle."""


class DecontaminationSettings(Settings):
    """Chats that contain a question of an evaluation are left out and listed."""

    questions: list[DiskPath] = Field(min_length=1)
    """Files of questions: JSONL with `turns`, `text`, `question` or `prompt`, or plain text, one a line."""
    ngram_words: int = Field(8, ge=3)
    """Words in a row that a chat and a question must share; a shorter question must be contained whole."""


Threshold = Annotated[float, Field(gt=0, le=1)]


def off_for_false(value: Any) -> Any:
    """YAML 1.1, which others read with, takes a bare `off` for false."""
    return "off" if value is False else value


class ModerationSettings(Settings):
    """Who is asked whether a text is fit. Chats that are flagged are left out."""

    kind: Annotated[Literal["off", "local", "openai"], BeforeValidator(off_for_false)] = "off"
    """`local`: on this machine. `openai`: the moderation endpoint at `base_url`, its key in `OPENAI_API_KEY`."""
    patterns: DiskPath | None = None
    """For `local`: YAML of regular expressions by category, instead of the model that comes with a package."""
    base_url: str = "https://api.openai.com/v1"
    """For `openai`: where the endpoint is."""
    model: str = "omni-moderation-latest"
    """For `openai`: which moderator."""
    thresholds: dict[str, Threshold] = Field(default={})
    """Scores from which on a category counts; others count as the moderator says."""
    allowed: list[str] = Field(default=[])
    """Categories that never count."""


class DataConfig(Settings):
    """The `data` section of a recipe: from raw chats to a dataset."""

    output: DiskPath
    """Directory the dataset is written to."""
    tokenizer: str
    """The model whose tokenizer is used: a directory, an `s3://` path or a hub id."""
    sources: list[SourcePath | SourceConfig] = []
    """Where the chats are: paths, or mappings of path, weight and max_records."""
    exclude_ids: list[str] = []
    """Ids of chats to leave out, as when someone asks for theirs to be deleted."""
    filters: FilterSettings = FilterSettings()
    """What is masked and left out."""
    dedup: DedupSettings = DedupSettings()
    """Duplicates."""
    decontamination: DecontaminationSettings | None = None
    """Evaluation questions that no chat may contain."""
    moderation: ModerationSettings = ModerationSettings()
    """Who judges whether a chat is fit to be trained on."""
    identity: IdentityConfig | None = None
    """Adds conversations in which the model says who it is."""
    template: str = "vicuna_v1.1"
    """Chat template of the rows and of the model trained on them."""
    context_length: int = Field(2048, ge=16)
    """Tokens a row may hold. Longer chats are split between rounds."""
    oversize_round: Literal["drop", "truncate_answer"] = "drop"
    """A round that alone is longer: left out, or its answer cut off where the row ends. Either is counted."""
    pack: bool = True
    """Put several chats into one row. Without it, each chat is a row."""
    eval_fraction: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of chats held out for evaluation, chosen by a hash of their id; the parts of a chat stay together."""
    group_size: int = Field(4096, ge=1)
    """Records that are packed together. Rows depend on it, not on the number of processes."""

    @property
    def chunk_size(self) -> int:
        """Records that are read and prepared at a time; a part of a group."""
        return min(CHUNK_SIZE, self.group_size)

    @property
    def source_list(self) -> list[SourceConfig]:
        """The sources, each with its settings."""
        return [SourceConfig(path=source) if isinstance(source, str) else source for source in self.sources]

    @model_validator(mode="after")
    def _has_input(self) -> Self:
        if not self.sources and self.identity is None:
            raise ValueError("give sources, identity, or both")
        output = real_path(self.output)
        folders = [source.path for source in self.source_list if source.path != DEMO and "://" not in source.path]
        if above := [path for path in folders if output.is_relative_to(real_path(path))]:
            raise ValueError(f"output: {self.output!r} is not outside of the source {above[0]!r}")
        if self.group_size % self.chunk_size:
            raise ValueError(f"group_size: {self.group_size} is not valid; above {CHUNK_SIZE} only its multiples are")
        if self.template not in TEMPLATES:
            raise ValueError(f"template: {self.template!r} is unknown; valid: {', '.join(sorted(TEMPLATES))}")
        return self
