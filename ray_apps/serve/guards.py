"""What stands before the API in each replica of the ingress."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from ray_apps.serve.auth import ApiKeys, Authentication
from ray_apps.serve.body import BodyLimit
from ray_apps.serve.policy import Limits, Security
from ray_apps.serve.rate_limits import RateLimit, Rates
from ray_apps.serve.request_log import Journal, RequestLog

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
    rates: Rates | None = None,
    journal: Journal | None = None,
    names_requests: bool = True,
) -> ASGIApp:
    """`api` behind the log, cross-origin rules, keys, rates and the size of bodies, in this order.

    `rates`, `journal`: those that others count and write in too; `limits` says the rates if there are none.
    """
    app: ASGIApp = BodyLimit(api, max_bytes=limits.max_body_bytes, timeout_s=limits.body_timeout_s)
    app = RateLimit(app, rates or Rates(limits.requests_per_minute, limits.tokens_per_minute))
    app = Authentication(app, keys, allow_open=security.allow_open)
    if security.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=security.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id", "X-Request-Timeout", "X-Session-Id"],
            expose_headers=_READABLE_BY_PAGES,
        )
    return RequestLog(app, journal or Journal(), names_requests=names_requests)
