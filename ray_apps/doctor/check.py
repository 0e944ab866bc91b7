"""One line of the report: what was looked at, what was found, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Group = Literal["versions", "devices", "model", "collectives", "storage"]
Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    group: Group
    name: str
    status: Status
    found: str
    """What a person reads, figures with their units."""
    advice: str = ""
    """What to do, in one line; empty if all is well."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """The same figures for a program; each name ends in its unit."""


def describe_bytes(num_bytes: float) -> str:
    """A size as people write it: `64 MB`, `1.5 GB`, `840 GB`."""
    if num_bytes < 1e8:
        return f"{num_bytes / 1e6:,.3g} MB"
    return f"{num_bytes / 1e9:.2g} GB" if num_bytes < 1e10 else f"{num_bytes / 1e9:,.0f} GB"
