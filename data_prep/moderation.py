"""Who judges whether a chat is fit to be trained on, behind one Protocol.

A moderator that cannot be reached stops the job: no chat is flagged, and none passes, for want of an answer.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import httpx
import yaml

from data_prep.config import ModerationSettings
from data_prep.conversation import Conversation
from data_prep.errors import ConfigError, DataError

_TRIES = 5
_MAX_WAIT_S = 30.0
_CHARACTERS = 20_000  # of one text the endpoint is asked about
_TEXTS = 32  # in one request
_REQUESTS = 4  # at a time


class Moderator(Protocol):
    """Judges chats."""

    def flags(self, conversations: Sequence[Conversation]) -> list[str | None]:
        """For each chat why it is flagged, None if it is not.

        Raises:
            DataError: the moderator cannot be asked.
        """


class NoModerator:
    """Flags nothing."""

    def flags(self, conversations: Sequence[Conversation]) -> list[str | None]:
        """See `Moderator`."""
        return [None] * len(conversations)


class PatternModerator:
    """Flags what matches a regular expression, with the name of its category."""

    def __init__(self, patterns: dict[str, re.Pattern[str]]) -> None:
        self._patterns = patterns

    def flags(self, conversations: Sequence[Conversation]) -> list[str | None]:
        """See `Moderator`."""
        return [self._flag(_text(conversation)) for conversation in conversations]

    def _flag(self, text: str) -> str | None:
        return next((category for category, pattern in self._patterns.items() if pattern.search(text)), None)


class OpenAiModerator:
    """Asks an endpoint of OpenAI's moderation API. Rate limits and failures are waited out, `Retry-After` honoured."""

    def __init__(self, base_url: str, model: str, key: str, *, max_wait_s: float = _MAX_WAIT_S) -> None:
        self._url = f"{base_url.rstrip('/')}/moderations"
        self._model = model
        self._headers = {"Authorization": f"Bearer {key}"}
        self._max_wait_s = max_wait_s

    def flags(self, conversations: Sequence[Conversation]) -> list[str | None]:
        """See `Moderator`."""
        pieces = [
            (index, piece) for index, conversation in enumerate(conversations) for piece in _pieces(_text(conversation))
        ]
        batches = [pieces[start : start + _TEXTS] for start in range(0, len(pieces), _TEXTS)]
        flags: list[str | None] = [None] * len(conversations)
        with httpx.Client(headers=self._headers, timeout=60) as client, ThreadPoolExecutor(_REQUESTS) as pool:
            verdicts = pool.map(lambda batch: self._ask(client, [text for _, text in batch]), batches)
            for batch, batch_verdicts in zip(batches, verdicts, strict=True):
                for (index, _), verdict in zip(batch, batch_verdicts, strict=True):
                    flags[index] = flags[index] or verdict
        return flags

    def _ask(self, client: httpx.Client, texts: list[str]) -> list[str | None]:
        problem, wait_s = "", 0.0
        for attempt in range(_TRIES):
            time.sleep(min(self._max_wait_s, wait_s))
            wait_s = 2.0**attempt
            try:
                response = client.post(self._url, json={"model": self._model, "input": texts})
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
                continue
            if response.is_success:
                return _verdicts(response, len(texts), self._url)
            problem = f"status {response.status_code}"
            if response.status_code not in (408, 429) and response.status_code < 500:
                break
            wait_s = _retry_after(response) or wait_s
        raise DataError(f"data.moderation: {self._url} does not answer: {problem}")


def _verdicts(response: httpx.Response, expected: int, url: str) -> list[str | None]:
    try:
        results: list[Any] = response.json()["results"]
        verdicts = [_verdict(result) for result in results]
    except (ValueError, KeyError, TypeError, AttributeError):
        verdicts = []
    if len(verdicts) != expected:
        raise DataError(f"data.moderation: {url} gave no verdict for each of {expected} texts")
    return verdicts


def _verdict(result: dict[str, Any]) -> str | None:
    if not result["flagged"]:
        return None
    return ", ".join(sorted(name for name, hit in result.get("categories", {}).items() if hit)) or "flagged"


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.replace(".", "", 1).isdigit() else None


def _text(conversation: Conversation) -> str:
    return "\n".join(message.content for message in conversation.messages)


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, max(1, len(text)), _CHARACTERS):
        yield text[start : start + _CHARACTERS]


def build_moderator(settings: ModerationSettings) -> Moderator:
    """The moderator that `settings` name.

    Raises:
        ConfigError: its patterns or its key are missing or wrong.
    """
    if settings.kind == "openai":
        key = os.environ.get("OPENAI_API_KEY")
        if not key:
            raise ConfigError("data.moderation.kind: 'openai' needs the environment variable OPENAI_API_KEY")
        return OpenAiModerator(settings.base_url, settings.model, key)
    return (
        PatternModerator(_load_patterns(Path(settings.patterns or ""))) if settings.kind == "local" else NoModerator()
    )


def _load_patterns(path: Path) -> dict[str, re.Pattern[str]]:
    field = "data.moderation.patterns"
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{field}: {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"{field}: {path}: expected a mapping of categories to lists of regular expressions")
    return {str(category): _compile(patterns, f"{field}: {path}: {category}") for category, patterns in values.items()}


def _compile(patterns: Any, where: str) -> re.Pattern[str]:
    if not isinstance(patterns, list) or not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(f"{where}: expected a list of regular expressions")
    try:
        return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)
    except re.error as error:
        raise ConfigError(f"{where}: not a regular expression: {error}") from None
