"""A model behind an OpenAI-compatible endpoint."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from data_prep.errors import ChatError
from ray_apps.chat.talker import Ending, Sampling, TooLongError
from ray_apps.transcript import Message

TIMEOUT = httpx.Timeout(10, read=600)
"""Seconds. A model that is loaded on demand lets the first token wait."""
TOO_LONG = ("context length", "context_length", "too many tokens", "too long")


class Endpoint:
    """`url`: with or without `/v1` at its end. `model`: None is the first that it lists.

    Raises:
        ChatError: it cannot be reached, or has no such model.
    """

    def __init__(self, url: str, model: str | None = None, key: str | None = None) -> None:
        base = url.rstrip("/")
        self._url = base if base.endswith("/v1") else f"{base}/v1"
        if key is not None and not key.isascii():
            raise ChatError("OPENAI_API_KEY: a key has no such characters; expected ASCII")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT)
        names = self._models()
        if model is not None and names and model not in names:
            raise ChatError(f"{self._url} has no model {model!r}; valid: {', '.join(names)}")
        if model is None and not names:
            raise ChatError(f"{self._url} lists no models; name one with --model-name")
        self.name = model or names[0]

    def reply(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str | Ending]:
        """See `Talker`."""
        body: dict[str, Any] = {
            "model": self.name,
            "messages": list(messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling.repetition_penalty != 1:
            body["repetition_penalty"] = sampling.repetition_penalty
        try:
            with self._client.stream("POST", f"{self._url}/chat/completions", json=body) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal(response)
                yield from _read(response.iter_lines(), self._url)
        except httpx.HTTPError as error:
            raise ChatError(f"the connection to {self._url} was lost: {_reason(error)}") from None
        except httpx.InvalidURL as error:
            raise ChatError(f"{self._url}: {error}") from None

    def close(self) -> None:
        """See `Talker`."""
        self._client.close()

    def _models(self) -> list[str]:
        try:
            response = self._client.get(f"{self._url}/models", timeout=10)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ChatError(f"{self._url} cannot be reached: {_reason(error)}") from None
        if response.status_code in (401, 403):
            raise _refusal(response)
        try:
            return [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            return []


def _read(lines: Iterator[str], url: str) -> Iterator[str | Ending]:
    """Server-sent events: pieces, and when they are over how it ended."""
    reason: str | None = None
    usage: dict[str, Any] = {}
    for line in lines:
        if not line.startswith("data:") or line[5:].strip() == "[DONE]":
            continue
        event = _parse(line[5:], url)
        if "error" in event:
            raise ChatError(f"the answer broke off: {_said(event['error'])}")
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            if text := (choice.get("delta") or {}).get("content"):
                yield text
            reason = choice.get("finish_reason") or reason
    if reason is None:
        raise ChatError(f"the connection to {url} was lost in the middle of the answer")
    yield Ending(reason, usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _parse(text: str, url: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        raise ChatError(f"{url} sends what is no event of a chat: {text.strip()[:80]}") from None


def _refusal(response: httpx.Response) -> ChatError:
    """What a refusal means to the person who asked."""
    try:
        error = response.json()["error"]
        code = error.get("code") if isinstance(error, dict) else None
        said = _said(error)
    except (ValueError, KeyError, TypeError):
        code, said = None, response.text.strip().partition("\n")[0][:200] or f"status {response.status_code}"
    match response.status_code:
        case 401 | 403:
            return ChatError(f"the key is not accepted; set OPENAI_API_KEY: {said}")
        case 429 | 503 if after := response.headers.get("Retry-After"):
            return ChatError(f"busy; try again in {after} s: {said}")
        case 429 | 503:
            return ChatError(f"busy; try again later: {said}")
        case 400 | 413 if code == "context_length_exceeded" or any(words in said.lower() for words in TOO_LONG):
            return TooLongError(said)
        case 400 if code in ("content_filter", "content_policy_violation"):
            return ChatError(f"refused: {said}")
    return ChatError(f"status {response.status_code}: {said}")


def _said(error: Any) -> str:
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
