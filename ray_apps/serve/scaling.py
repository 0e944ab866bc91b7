"""How the number of replicas follows the load: the settings of Ray Serve's own policy.

It counts requests, those that wait included. That measures the tokens' worth of work too: a request takes a place in a
replica for as long as its tokens take, so the requests there are at a time are those that come per second times the
seconds of work in each (Little 1961), however long or short they are. It holds for requests with one answer each: one
with several takes several places, and Serve's policy counts it once.
"""

from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from data_prep.config import Settings

_SHARE_IN_USE = 0.75
_TOLD_EVERY_S = 1.0
"""Seconds between two reports of the load to Serve. Serve's own 10 would come on top of every delay below."""


class Autoscaling(Settings):
    """How the number of replicas follows the load."""

    min_replicas: int = Field(1, ge=0)
    """Replicas there always are. With 0 the last one is stopped when nobody asks; the next request starts one and waits
    for it."""
    max_replicas: int = Field(1, ge=1, validate_default=True)
    """The most there may be."""
    initial_replicas: int | None = Field(None, ge=0)
    """Replicas to begin with; by default `min_replicas`."""
    target_ongoing_requests: float | None = Field(None, gt=0)
    """Requests for each replica, those that wait included; by default three quarters of `max_ongoing_requests`. Less
    where most ask for several answers, for each of these takes a place."""
    look_back_period_s: float = Field(15, gt=0)
    """Seconds over which the requests are averaged."""
    upscale_delay_s: float = Field(10, ge=0)
    """Seconds for which more replicas must have been wanted before they are started."""
    downscale_delay_s: float = Field(300, ge=0)
    """Seconds for which fewer must have been enough before one is stopped. It takes its chats' cache with it."""
    downscale_to_zero_delay_s: float | None = Field(None, ge=0)
    """The same for the last one; by default `downscale_delay_s`."""

    @field_validator("max_replicas")
    @classmethod
    def _is_not_below_min(cls, value: int, info: ValidationInfo) -> int:
        least = info.data.get("min_replicas", 1)
        if value < least:
            raise ValueError(f"{value} is not valid; expected min_replicas ({least}) or more")
        return value

    @field_validator("initial_replicas")
    @classmethod
    def _is_between(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None or not {"min_replicas", "max_replicas"} <= info.data.keys():
            return value
        least, most = info.data["min_replicas"], info.data["max_replicas"]
        if not least <= value <= most:
            raise ValueError(f"{value} is not valid; expected min_replicas ({least}) to max_replicas ({most})")
        return value

    def for_serve(self, max_ongoing_requests: int) -> dict[str, Any]:
        """The same as Serve has it, for replicas that work on so many requests at a time."""
        target = self.target_ongoing_requests or _SHARE_IN_USE * max_ongoing_requests
        told_every = min(_TOLD_EVERY_S, self.look_back_period_s / 2)
        return {
            **self.model_dump(exclude_none=True),
            "target_ongoing_requests": target,
            "metrics_interval_s": told_every,
        }
