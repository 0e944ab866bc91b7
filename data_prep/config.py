"""Strict settings: the base of every settings class, one-line errors, and the `data` section of a recipe."""

import difflib
from collections.abc import Mapping
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

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
    return "\n".join(_describe(settings, detail, section) for detail in error.errors())


def _describe(settings: type[BaseModel], detail: Any, section: str) -> str:
    location = [str(part) for part in detail["loc"]]
    name = ".".join([section, *location] if section else location) or "settings"
    if detail["type"] == "extra_forbidden":
        valid = _field_names(settings, location[:-1])
        close = difflib.get_close_matches(location[-1], valid, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{name}: unknown field{hint} Valid fields: {', '.join(valid)}"
    if detail["type"] == "missing":
        return f"{name}: is required"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "value_error":
        return f"{name}: {message}" if location else message
    return f"{name}: {detail['input']!r} is not valid; expected {message}"


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
