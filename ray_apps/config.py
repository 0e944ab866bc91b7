"""Loading settings from YAML and from `section.key=value` overrides, strictly."""

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_prep.errors import ConfigError

_MERGE = "tag:yaml.org,2002:merge"


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which `2e-5` is a number and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = None if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            if key is None or not isinstance(key, Hashable):
                continue  # the base class takes a merge in, and refuses a list or a mapping
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: field {key!r} appears twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(values).__name__}")
    return values


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text; `where` names it in errors."""
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    # A value that is not what its tag or form says, `!!int x` or 2001-99-99, raises errors of Python's own.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `values` with each `section.key=value` applied; a value is read as YAML.

    Raises:
        ConfigError: an override has no `=`, or its path runs through something that is not a section.
    """
    result = _copy(values)
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise ConfigError(f"override {override!r}: expected section.key=value")
        target = result
        for depth, key in enumerate(keys[:-1], start=1):
            if target.get(key) is None:
                target[key] = {}
            if not isinstance(target[key], dict):
                raise ConfigError(f"override {override!r}: {'.'.join(keys[:depth])} is a value, not a section")
            target = target[key]
        target[keys[-1]] = parse_yaml(text, f"override {override!r}")
    return result


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}
