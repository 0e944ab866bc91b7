"""What stands before the API in each replica of the ingress."""

from collections.abc import Callable

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from ray_apps.serve.auth import ApiKeys, Authentication
from ray_apps.serve.body import BodyLimit
from ray_apps.serve.metrics import RequestMetrics
from ray_apps.serve.policy import Limits, Security
from ray_apps.serve.rate_limits import RateLimit
from ray_apps.serve.request_log import RequestLog

_READABLE_BY_PAGES = [
    "Retry-After",
    "X-Request-Id",
    *(f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")),
]


def guarded(
    api: ASGIApp,
    keys: ApiKeys,
    security: Security,
    limits: Limits,
    *,
    write_line: Callable[[str], object] | None = None,
    with_texts: bool = False,
    metrics: RequestMetrics | None = None,
    names_requests: bool = True,
) -> ASGIApp:
    """`api` behind the log, cross-origin rules, keys, rates and the size of bodies, in this order."""
    app: ASGIApp = BodyLimit(api, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s)
    rates = (limits.requests_per_minute, limits.tokens_per_minute)
    if rates != (None, None):
        app = RateLimit(app, requests_per_minute=rates[0], tokens_per_minute=rates[1])
    app = Authentication(app, keys, allow_open=security.allow_open)
    if security.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=security.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id", "X-Request-Timeout", "X-Session-Id"],
            expose_headers=_READABLE_BY_PAGES,
        )
    return RequestLog(app, write=write_line, with_texts=with_texts, metrics=metrics, names_requests=names_requests)
