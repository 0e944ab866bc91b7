"""A client of an OpenAI-compatible endpoint: so many calls at a time, each tried again while that may help.

What may help: rate limits and an endpoint that is busy (`Retry-After` is honoured), errors of the server, connections
that are lost or refused, answers that are no JSON or are cut off. A key that is not accepted, a model that is not there
and an endpoint that stays away are told at once: no other call would fare better.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from data_prep.errors import EvalError

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Target:
    """A model behind an endpoint. `url`: with or without `/v1` at its end."""

    url: str
    model: str
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """`tries` of one call; seconds for one try, and for one pause between two at most."""

    tries: int = 5
    timeout_s: float = 600.0
    max_pause_s: float = 60.0
    first_pause_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: `finish_reason` `stop` or `length`."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class CallError(Exception):
    """A call came to nothing, after all its tries; another might not."""


class RefusedError(CallError):
    """The request itself is refused: 400 and the like. `said`: why."""


class Client:
    """Calls `target`, `concurrency` at a time. To be used within `async with`."""

    def __init__(self, target: Target, *, concurrency: int = 8, patience: Patience | None = None) -> None:
        self.target = target
        self.patience = patience or Patience()
        base = target.url.rstrip("/")
        self.url = base if base.endswith("/v1") else f"{base}/v1"
        headers = {"Authorization": f"Bearer {target.key}"} if target.key else {}
        limits = httpx.Limits(max_connections=concurrency)
        timeout = httpx.Timeout(self.patience.timeout_s, connect=10, pool=None)
        self._http = httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout)
        self._turn = asyncio.Semaphore(concurrency)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    async def chat(self, messages: Sequence[Message], **fields: Any) -> Reply:
        """The model's answer; `fields` are OpenAI's.

        Raises:
            RefusedError: the request is refused as it is.
            CallError: there is none after all tries, or what came is none.
            EvalError: there will be none for any other call either.
        """
        body = {"model": self.target.model, "messages": list(messages), **fields}
        async with self._turn:
            failed: _TryAgainError | None = None
            for number in range(self.patience.tries):
                if failed is not None:
                    await asyncio.sleep(self._pause_s(failed, number))
                try:
                    return _read(await self._post(body))
                except _TryAgainError as error:
                    failed = error
        assert failed is not None
        if failed.is_unreachable:
            raise EvalError(f"{self.url} cannot be reached: {failed}")
        raise CallError(str(failed))

    async def _post(self, body: Mapping[str, Any]) -> Any:
        try:
            response = await self._http.post(f"{self.url}/chat/completions", json=body)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise EvalError(f"{self.url}: {error}") from None
        except httpx.ConnectError as error:
            raise _TryAgainError(str(error) or "it refuses connections", is_unreachable=True) from None
        except httpx.TimeoutException:
            raise _TryAgainError(f"no answer within {self.patience.timeout_s:g} s") from None
        except httpx.TransportError as error:
            raise _TryAgainError(f"the connection was lost: {error or type(error).__name__}") from None
        if not response.is_success:
            self._refuse(response)
        try:
            return response.json()
        except ValueError:
            raise _TryAgainError(f"the answer is no JSON: {response.text.strip()[:80]!r}") from None

    def _refuse(self, response: httpx.Response) -> None:
        """Raise what a status other than success means."""
        said = _said(response)
        match response.status_code:
            case 401 | 403:
                raise EvalError(f"{self.url}: the key is not accepted: {said}")
            case 404:
                raise EvalError(f"{self.url} has no model {self.target.model!r}: {said}")
            case 408 | 409 | 425 | 429:
                raise _TryAgainError(f"busy ({response.status_code}): {said}", after_s=_retry_after(response))
            case status if status >= 500:
                raise _TryAgainError(f"status {status}: {said}", after_s=_retry_after(response))
        raise RefusedError(f"refused ({response.status_code}): {said}")

    def _pause_s(self, failed: "_TryAgainError", number: int) -> float:
        """What the endpoint asks for, else twice as long each time, spread by half."""
        wanted = failed.after_s
        if wanted is None:
            wanted = self.patience.first_pause_s * 2 ** (number - 1) * random.uniform(0.5, 1.5)  # noqa: S311
        return min(wanted, self.patience.max_pause_s)


class _TryAgainError(Exception):
    def __init__(self, reason: str, *, after_s: float | None = None, is_unreachable: bool = False) -> None:
        super().__init__(reason)
        self.after_s = after_s
        self.is_unreachable = is_unreachable


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None


def _said(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return response.text.strip().partition("\n")[0][:200] or "it does not say why"


def _read(content: Any) -> Reply:
    """The one choice of a chat completion.

    Raises:
        _TryAgainError: it is none.
        CallError: the answer was withheld.
    """
    try:
        choice = content["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
        usage = content.get("usage") or {}
        counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise _TryAgainError(f"the answer is no chat completion: {str(content)[:80]}") from None
    if reason == "content_filter":
        raise CallError("the answer was withheld by moderation")
    if not isinstance(text, str) or reason not in ("stop", "length"):
        raise _TryAgainError(f"the answer has finish_reason {reason!r} and content of type {type(text).__name__}")
    return Reply(text, reason, *counts)
