"""Requests and tokens per minute and key: token buckets, kept by each replica of the ingress for itself."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ray_apps.serve.errors import ApiError, error_response, rate_limited
from ray_apps.serve.record import RequestRecord, current_request


class Bucket:
    """Holds up to `per_minute`, and fills at that rate. What is taken afterwards may leave a debt."""

    def __init__(self, per_minute: int, now: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._now = now
        self._level = float(per_minute)
        self._filled = now()

    @property
    def level(self) -> float:
        """What is left now; below zero after more was taken than there was."""
        now = self._now()
        self._level = min(self.per_minute, self._level + (now - self._filled) * self.per_minute / 60)
        self._filled = now
        return self._level

    def take(self, amount: float) -> None:
        """Take `amount`, whether or not it is there."""
        self._level = self.level - amount

    def wait_s(self, level: float) -> float:
        """Seconds until there is that much."""
        return max(0.0, level - self.level) * 60 / self.per_minute


@dataclass(frozen=True)
class KeyBuckets:
    """What is left of one key's minute; None where there is no limit."""

    requests: Bucket | None
    tokens: Bucket | None


class Rates:
    """What is left of every key's requests and tokens per minute. `None`: no limit.

    A request is let in while any tokens are left, as nobody knows before how many it takes; they are taken when it is
    over, those of its prompt and of its answers, as far as they are known then.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_minute = (requests_per_minute, tokens_per_minute)
        self._now = now
        self._keys: dict[str, KeyBuckets] = {}

    def enter(self, key_name: str) -> None:
        """Count a request of a key.

        Raises:
            ApiError: it has none left, or no tokens.
        """
        buckets = self.buckets_of(key_name)
        for kind, bucket in (("requests", buckets.requests), ("tokens", buckets.tokens)):
            if bucket and bucket.level < 1:
                raise rate_limited(kind, bucket.per_minute, math.ceil(bucket.wait_s(1)))
        if buckets.requests:
            buckets.requests.take(1)

    def leave(self, record: RequestRecord) -> None:
        """Count what a request took."""
        if tokens := self.buckets_of(record.key_name).tokens:
            tokens.take(record.num_prompt_tokens + record.num_completion_tokens)

    def buckets_of(self, key_name: str) -> KeyBuckets:
        """What is left of one key's minute."""
        if key_name not in self._keys:
            made = [None if limit is None else Bucket(limit, self._now) for limit in self._per_minute]
            self._keys[key_name] = KeyBuckets(*made)
        return self._keys[key_name]


class RateLimit:
    """Refuses what goes beyond `rates`, and tells each answer what is left. Only `POST` counts."""

    def __init__(self, app: ASGIApp, rates: Rates) -> None:
        self._app = app
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse, and count."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        record = current_request()
        send = _with_headers(send, self._rates.buckets_of(record.key_name))
        try:
            self._rates.enter(record.key_name)
        except ApiError as refusal:
            await error_response(refusal.failure)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._rates.leave(record)


def _with_headers(send: Send, buckets: KeyBuckets) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for kind, bucket in (("requests", buckets.requests), ("tokens", buckets.tokens)):
                if bucket:
                    headers[f"x-ratelimit-limit-{kind}"] = str(bucket.per_minute)
                    headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, math.floor(bucket.level)))
                    headers[f"x-ratelimit-reset-{kind}"] = f"{bucket.wait_s(bucket.per_minute):.3f}s"
        await send(message)

    return send_with_headers
