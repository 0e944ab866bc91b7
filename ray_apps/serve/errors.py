"""Every error of the API, and the one place that renders them."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ray_apps.serve.protocol.errors import ErrorBody, ErrorResponse, ErrorType

logger = logging.getLogger(__name__)

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The request is refused."},
    "5XX": {"model": ErrorResponse, "description": "It cannot be answered now."},
}
"""What a description of the API says of every route."""

_CODES = {
    "extra_forbidden": "unknown_parameter",
    "invalid_type": "invalid_type",
    "json_invalid": "invalid_json",
    "missing": "missing_required_parameter",
    "unsupported_parameter": "unsupported_parameter",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as plain data: this is what crosses a process. `retry_after_s` tells a client when to try again."""

    status: int
    message: str
    type: ErrorType
    code: str
    param: str | None = None
    retry_after_s: int | None = None

    @property
    def is_of_replica(self) -> bool:
        """Whether another replica might do better."""
        return self.status == 503


class ApiError(Exception):
    """A request cannot be answered; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def bad_request(message: str, *, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the request is wrong."""
    return ApiError(Failure(400, message, "invalid_request_error", code, param))


def context_length_exceeded(num_prompt: int, num_answer: int, limit: int, *, param: str = "messages") -> ApiError:
    """400: the prompt, or the prompt with the answer that is asked for, is too long. Lengths in tokens."""
    asked = f" and asks for {num_answer} more" if num_answer else ", which leaves no room for an answer"
    message = f"This model's maximum context length is {limit} tokens; the prompt has {num_prompt}{asked}."
    return bad_request(message, param=param, code="context_length_exceeded")


def model_not_found(name: str) -> ApiError:
    """404: another model than the one served here."""
    message = f"The model {name!r} does not exist."
    return ApiError(Failure(404, message, "invalid_request_error", "model_not_found", "model"))


def overloaded() -> ApiError:
    """429: the queue is full."""
    message = "The server has as many requests waiting as it takes; try again later."
    return ApiError(Failure(429, message, "rate_limit_error", "rate_limit_exceeded", retry_after_s=1))


def unauthorized(message: str) -> ApiError:
    """401: whoever asks may not."""
    return ApiError(Failure(401, message, "invalid_request_error", "invalid_api_key"))


def body_too_large(max_bytes: int) -> ApiError:
    """413: the body is longer than any may be."""
    message = f"The body is larger than {max_bytes} bytes, the most this server takes."
    return ApiError(Failure(413, message, "invalid_request_error", "request_too_large"))


def body_too_slow(timeout_s: float) -> ApiError:
    """408: the body was not there in time."""
    message = f"The body did not arrive within {timeout_s:g} seconds."
    return ApiError(Failure(408, message, "invalid_request_error", "request_timeout"))


def timed_out() -> ApiError:
    """408: Serve's own limit was reached before there was an answer."""
    return ApiError(Failure(408, "The request was not answered in time.", "server_error", "request_timeout"))


def unknown_path(path: str) -> ApiError:
    """404: nothing answers there."""
    return ApiError(Failure(404, f"Unknown path: {path}", "invalid_request_error", "invalid_request"))


def rate_limited(kind: str, per_minute: int, retry_after_s: int) -> ApiError:
    """429: a key has used up its minute. `kind`: requests or tokens."""
    message = f"Rate limit reached: {per_minute} {kind} per minute; try again in {retry_after_s} s."
    return ApiError(Failure(429, message, "rate_limit_error", "rate_limit_exceeded", retry_after_s=retry_after_s))


def refused_by_moderation(categories: Sequence[str], param: str) -> ApiError:
    """400: what is asked is flagged."""
    message = f"The request was refused by moderation: {', '.join(categories)}."
    return bad_request(message, param=param, code="content_filter")


def moderation_unavailable() -> ApiError:
    """503: nothing passes unjudged, and there is no judgement."""
    message = "The request could not be moderated, and is not answered without; try again later."
    return ApiError(Failure(503, message, "server_error", "moderation_unavailable", retry_after_s=5))


def generation_failed() -> ApiError:
    """500: what happened is in the server's log, and is not the client's to read."""
    return ApiError(Failure(500, "The answer could not be generated.", "server_error", "internal_error"))


def unavailable() -> ApiError:
    """503: no replica can answer now."""
    message = "The model is not ready to answer; try again later."
    return ApiError(Failure(503, message, "server_error", "service_unavailable", retry_after_s=1))


def answer_lost() -> ApiError:
    """503, in the middle of an answer: what was to come of it is lost."""
    message = "The answer broke off: the replica that gave it is gone. Ask again."
    return ApiError(Failure(503, message, "server_error", "answer_lost"))


def queued_too_long() -> ApiError:
    """503: no replica had room in time."""
    message = "No replica had room for the request in time; try again later."
    return ApiError(Failure(503, message, "server_error", "queue_timeout", retry_after_s=1))


def deadline_exceeded(seconds: float) -> ApiError:
    """504: the answer would have taken longer than it may."""
    message = f"The answer was not finished within {seconds:g} s."
    return ApiError(Failure(504, message, "server_error", "deadline_exceeded"))


def failure_of(error: Exception) -> Failure:
    """`error` as a failure; one that nobody foresaw is logged and becomes a 500."""
    if isinstance(error, ApiError):
        return error.failure
    logger.error("unexpected error", exc_info=error)
    return generation_failed().failure


def error_json(failure: Failure) -> str:
    """The body of an error, as ASCII: a message may repeat what a client sent, and that may be no valid Unicode."""
    body = ErrorBody(message=failure.message, type=failure.type, param=failure.param, code=failure.code)
    return json.dumps(ErrorResponse(error=body).model_dump())


def error_response(failure: Failure) -> Response:
    """The whole HTTP response."""
    headers = {} if failure.retry_after_s is None else {"Retry-After": str(failure.retry_after_s)}
    if failure.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(error_json(failure), failure.status, headers, media_type="application/json")


def describe_validation(errors: Sequence[Any]) -> Failure:
    """The first of pydantic's findings about a body, as a 400 that names the parameter."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return bad_request(f"The body is not valid JSON: {first['ctx']['error']}.", code="invalid_json").failure
    param = _join(first["loc"][1:])
    if not param:
        message = "The body should be a JSON object, sent with 'Content-Type: application/json'."
    elif first["type"] == "extra_forbidden":
        message = f"Unknown parameter: {param!r}."
    elif first["type"] == "missing":
        message = f"Missing required parameter: {param!r}."
    else:
        message = f"{param}: {first['msg']}"
    default = "invalid_type" if first["type"].endswith(("_type", "_parsing")) else "invalid_value"
    return bad_request(message, param=param or None, code=_CODES.get(first["type"], default)).failure


def _join(location: Sequence[str | int]) -> str:
    """`("messages", 0, "role")` as `messages[0].role`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")


def install_error_handlers(api: FastAPI) -> None:
    """Make every error of `api` one of OpenAI's shape."""
    api.add_exception_handler(Exception, _on_error)
    api.add_exception_handler(ApiError, _on_error)
    api.add_exception_handler(RequestValidationError, _on_invalid_body)
    api.add_exception_handler(HTTPException, _on_http_error)


async def _on_error(request: Request, error: Exception) -> Response:
    return error_response(failure_of(error))


async def _on_invalid_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(describe_validation(error.errors()))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: f"Unknown path: {request.url.path}", 405: f"{request.method} is not allowed here"}
    message = messages.get(error.status_code, str(error.detail))
    response = error_response(Failure(error.status_code, message, "invalid_request_error", "invalid_request"))
    response.headers.update(error.headers or {})  # Which methods are allowed, after a 405.
    return response
