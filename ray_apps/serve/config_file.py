"""A Serve config file with one application of ours, read strictly. Nothing is started, and Ray is not imported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from data_prep.config import Settings
from data_prep.errors import ConfigError
from ray_apps.config import apply_overrides, load_yaml
from ray_apps.serve.config import ServeArgs


class HttpOptions(Settings):
    """Where the endpoint listens."""

    host: str = "127.0.0.1"
    """`0.0.0.0` listens on every interface."""
    port: int = Field(8000, ge=0, le=65535)
    """0 takes a free one."""
    keep_alive_timeout_s: int = Field(90, ge=1)
    """Seconds an idle connection stays open."""

    @model_validator(mode="before")
    @classmethod
    def _leaves_time_to_the_api(cls, values: Any) -> Any:
        if isinstance(values, dict) and "request_timeout_s" in values:
            raise ValueError("Serve's request_timeout_s breaks answers off; set args.request_timeout_s instead")
        return values


class ServeApplication(Settings):
    """One application of the file."""

    name: str = "chat"
    """What Serve's status calls it."""
    route_prefix: str = Field("/", pattern="^/")
    """Where its paths begin."""
    import_path: Literal["ray_apps.serve.app:build_app"]
    """What builds it."""
    args: ServeArgs = ServeArgs()
    """What it serves."""


class ServeFile(Settings):
    """The part of Serve's config format that `vicuna serve` honours; `serve run` takes the rest of it too."""

    proxy_location: Literal["EveryNode", "HeadOnly"] = "EveryNode"
    """Nodes that listen: each that has a replica, or the head alone."""
    http_options: HttpOptions = HttpOptions()
    """Where they listen."""
    applications: list[ServeApplication] = Field(min_length=1, max_length=1)
    """One."""

    @property
    def application(self) -> ServeApplication:
        """The one application."""
        return self.applications[0]


def load_serve_file(path: Path, overrides: Sequence[str] = ()) -> ServeFile:
    """Read a Serve config file, with `args.key=value` and `http_options.key=value` overrides.

    Raises:
        ConfigError: the file is missing, or a field is unknown or wrong; one line per field.
    """
    file = ServeFile.parse(load_yaml(path))
    sections = apply_overrides(
        {
            "args": file.application.args.model_dump(exclude_unset=True),
            "http_options": file.http_options.model_dump(exclude_unset=True),
        },
        overrides,
    )
    if unknown := sections.keys() - {"args", "http_options"}:
        raise ConfigError(f"override {min(unknown)}: unknown section; expected args or http_options")
    args = ServeArgs.parse(sections["args"], "args")
    options = HttpOptions.parse(sections["http_options"], "http_options")
    application = file.application.model_copy(update={"args": args})
    return file.model_copy(update={"http_options": options, "applications": [application]})
