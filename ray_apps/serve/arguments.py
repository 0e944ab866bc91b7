"""Arguments as Ray's own command passes them on: `serve run ray_apps.serve.app:build_app model=DIR num_replicas=2`."""

from collections.abc import Mapping
from typing import Any

from ray_apps.config import apply_overrides
from ray_apps.serve.config import ServeArgs


def read_arguments(args: Mapping[str, Any]) -> dict[str, Any]:
    """`args` with numbers, truth values, lists and sections in place of their texts, if texts are all there is.

    They are read as YAML; fields of a section are named `section.field`. What is to be a text, such as a name, is left
    as it was written.

    Raises:
        ConfigError: a text is no valid YAML.
    """
    if not all(isinstance(value, str) for value in args.values()):
        return dict(args)
    texts = {name: value for name, value in args.items() if _is_text(name)}
    return apply_overrides(texts, [f"{name}={value}" for name, value in args.items() if name not in texts])


def _is_text(name: str) -> bool:
    field = ServeArgs.model_fields.get(name)
    return field is not None and field.annotation in (str, str | None)
