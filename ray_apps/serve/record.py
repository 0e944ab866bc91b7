"""What is known of one HTTP request: filled in on its way, and read by the log, the metrics and the rate limits."""

import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field

ANYBODY = "anybody"
"""Who asks where no key is configured."""


@dataclass
class RequestRecord:
    """One request. Times are in seconds since it came; None where there was no such thing."""

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    key_name: str = ANYBODY
    method: str = ""
    path: str = ""
    status: int | None = None
    model: str | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0
    queue_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    messages: object = None
    answers: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since it came."""
        return time.monotonic() - self.started


_current: ContextVar[RequestRecord] = ContextVar("request_record")


def begin(record: RequestRecord) -> None:
    """From here on `record` is that of the request under way."""
    _current.set(record)


def current_request() -> RequestRecord:
    """The record of the request under way; outside of one, a record that nobody reads."""
    return _current.get(None) or RequestRecord()
