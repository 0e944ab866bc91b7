"""The shape of every error: `{"error": {"message", "type", "param", "code"}}`."""

from typing import Literal

from pydantic import BaseModel

ErrorType = Literal["invalid_request_error", "rate_limit_error", "server_error"]


class ErrorBody(BaseModel):
    """What went wrong. `param` names the field of the request, where one is at fault."""

    message: str
    type: ErrorType
    param: str | None = None
    code: str


class ErrorResponse(BaseModel):
    """The body of every response that is not a success, and of an error event in a stream."""

    error: ErrorBody
