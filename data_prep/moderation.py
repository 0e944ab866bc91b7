"""Who judges whether a text is fit to be trained on, asked or answered, behind one Protocol.

A moderator that cannot be reached raises: nothing is flagged, and nothing passes, for want of an answer.
"""

import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import httpx
import regex
import yaml

from data_prep.config import ModerationSettings
from data_prep.conversation import Conversation
from data_prep.errors import ConfigError, DataError

CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""Those of OpenAI's moderation API. A moderator may have others."""

_PATTERN_S = 2.0
_TRIES = 5
_MAX_WAIT_S = 30.0
_CHARACTERS = 20_000  # of one text the endpoint is asked about
_TEXTS = 32  # in one request
_REQUESTS = 4  # at a time
_SENTENCE_END = re.compile(r"(?<=[.!?\n])\s+")
_SENTENCE = 400  # characters at most


class ModerationError(DataError):
    """A moderator cannot be asked, or gives no verdict."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a moderator holds of a text: `scores` by category, 0 to 1, and which it flags by its own measure."""

    scores: Mapping[str, float]
    flagged: frozenset[str] = frozenset()

    def with_thresholds(self, thresholds: Mapping[str, float]) -> frozenset[str]:
        """The categories that count: those with a threshold by their score, the others by the moderator's measure."""
        by_score = {name for name, least in thresholds.items() if self.scores.get(name, 0.0) >= least}
        return frozenset(by_score | (self.flagged - thresholds.keys()))


class Moderator(Protocol):
    """Judges texts."""

    @property
    def assessed(self) -> Sequence[str]:
        """The categories that it knows of; it has nothing to say of others."""
        ...

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """A judgement for each text.

        Raises:
            ModerationError: the moderator cannot be asked.
        """
        ...


class NoModerator:
    """Flags nothing."""

    assessed: Sequence[str] = ()

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """See `Moderator`."""
        return [Judgement({})] * len(texts)


class PatternModerator:
    """Flags what matches one of a category's regular expressions, with the name of the category.

    An expression that takes longer than `timeout_s` on one text is given up, and the text has no judgement.
    """

    def __init__(self, patterns: Mapping[str, Sequence[str]], timeout_s: float = _PATTERN_S) -> None:
        self._patterns = {
            category: [regex.compile(one, regex.IGNORECASE | regex.V0) for one in some]
            for category, some in patterns.items()
        }
        self._timeout_s = timeout_s
        self.assessed = list(patterns)

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """See `Moderator`."""
        return [self._judge(text) for text in texts]

    def _judge(self, text: str) -> Judgement:
        found = {
            category: float(any(self._finds(pattern, text) for pattern in some))
            for category, some in self._patterns.items()
        }
        return Judgement(found, frozenset(category for category, score in found.items() if score))

    def _finds(self, pattern: Any, text: str) -> bool:
        try:
            return pattern.search(text, timeout=self._timeout_s, concurrent=True) is not None
        except TimeoutError:
            raise ModerationError(
                f"moderation: the pattern {pattern.pattern!r} takes longer than {self._timeout_s:g} s on a text"
            ) from None


class ToxicityModerator:
    """Flags insults, threats and profanity in English, as harassment, by the model in the package alt-profanity-check.

    A linear classifier of words, trained on comments that people labelled; works offline. It is asked sentence by
    sentence. Of the other categories, and of other languages, it knows nothing.
    """

    assessed: Sequence[str] = ("harassment",)

    def __init__(self) -> None:
        from profanity_check import predict_prob

        self._predict = predict_prob

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """See `Moderator`."""
        sentences = [(number, sentence) for number, text in enumerate(texts) for sentence in _sentences(text)]
        scores = [0.0] * len(texts)
        if sentences:
            likely = self._predict([sentence for _, sentence in sentences])
            for (number, _), score in zip(sentences, likely, strict=True):
                scores[number] = max(scores[number], float(score))
        return [Judgement({"harassment": score}, _if(score >= 0.5, "harassment")) for score in scores]


def _sentences(text: str) -> Iterator[str]:
    """Those that say anything; a very long one in pieces."""
    for sentence in filter(None, _SENTENCE_END.split(text)):
        yield from _pieces(sentence, _SENTENCE)


def _if(holds: bool, category: str) -> frozenset[str]:
    return frozenset({category} if holds else ())


class OpenAiModerator:
    """Asks an endpoint of OpenAI's moderation API. Rate limits and failures are waited out, `Retry-After` honoured.

    `timeout_s`: of one request; there are `tries` of it, with at most `max_wait_s` between two.
    """

    assessed: Sequence[str] = CATEGORIES

    def __init__(
        self,
        base_url: str,
        model: str,
        key: str,
        *,
        max_wait_s: float = _MAX_WAIT_S,
        tries: int = _TRIES,
        timeout_s: float = 60,
    ) -> None:
        self._url = f"{base_url.rstrip('/')}/moderations"
        self._model = model
        self._headers = {"Authorization": f"Bearer {key}"}
        self._max_wait_s = max_wait_s
        self._tries = tries
        self._timeout_s = timeout_s

    def judge(self, texts: Sequence[str]) -> list[Judgement]:
        """See `Moderator`."""
        pieces = [(number, piece) for number, text in enumerate(texts) for piece in _pieces(text, _CHARACTERS)]
        batches = [pieces[start : start + _TEXTS] for start in range(0, len(pieces), _TEXTS)]
        judged: list[Judgement] = [Judgement({})] * len(texts)
        with (
            httpx.Client(headers=self._headers, timeout=self._timeout_s) as client,
            ThreadPoolExecutor(_REQUESTS) as pool,
        ):
            verdicts = pool.map(lambda batch: self._ask(client, [text for _, text in batch]), batches)
            for batch, batch_verdicts in zip(batches, verdicts, strict=True):
                for (number, _), verdict in zip(batch, batch_verdicts, strict=True):
                    judged[number] = worse(judged[number], verdict)
        return judged

    def _ask(self, client: httpx.Client, texts: list[str]) -> list[Judgement]:
        problem, wait_s = "", 0.0
        for attempt in range(self._tries):
            time.sleep(min(self._max_wait_s, wait_s))
            wait_s = 2.0**attempt
            try:
                response = client.post(self._url, json={"model": self._model, "input": texts})
            except (httpx.TransportError, httpx.DecodingError) as error:
                problem = str(error) or type(error).__name__
                continue
            if response.is_success:
                return _verdicts(response, len(texts), self._url)
            problem = f"status {response.status_code}"
            if response.status_code not in (408, 429) and response.status_code < 500:
                break
            wait_s = _retry_after(response) or wait_s
        raise ModerationError(f"moderation: {self._url} does not answer: {problem}")


def _verdicts(response: httpx.Response, expected: int, url: str) -> list[Judgement]:
    try:
        results: list[Any] = response.json()["results"]
        verdicts = [_verdict(result) for result in results]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        verdicts = []
    if len(verdicts) != expected:
        raise ModerationError(f"moderation: {url} gave no verdict for each of {expected} texts")
    return verdicts


def _verdict(result: dict[str, Any]) -> Judgement:
    """What a result says; ValueError if it says nothing one can rely on."""
    hits = frozenset(name for name, hit in (result.get("categories") or {}).items() if hit is True)
    scores = {str(name): float(score or 0) for name, score in (result.get("category_scores") or {}).items()}
    if not isinstance(result["flagged"], bool) or not all(map(math.isfinite, scores.values())):
        raise ValueError("no verdict")
    flagged = hits or frozenset({"flagged"}) if result["flagged"] else frozenset()
    return Judgement(dict.fromkeys(flagged, 1.0) | scores, flagged)


def worse(one: Judgement, other: Judgement) -> Judgement:
    """What two parts of a text come to."""
    names = one.scores.keys() | other.scores.keys()
    scores = {name: max(one.scores.get(name, 0.0), other.scores.get(name, 0.0)) for name in sorted(names)}
    return Judgement(scores, one.flagged | other.flagged)


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.replace(".", "", 1).isdigit() else None


def flag_chats(
    moderator: Moderator, conversations: Sequence[Conversation], settings: ModerationSettings | None = None
) -> list[str | None]:
    """For each chat why it is flagged, None if it is not.

    Raises:
        ModerationError: the moderator cannot be asked.
    """
    texts = ["\n".join(message.content for message in conversation.messages) for conversation in conversations]
    settings = settings or ModerationSettings()
    counted = (one.with_thresholds(settings.thresholds) - {*settings.allowed} for one in moderator.judge(texts))
    return [", ".join(sorted(flagged)) or None for flagged in counted]


def _pieces(text: str, size: int) -> Iterator[str]:
    for start in range(0, max(1, len(text)), size):
        yield text[start : start + size]


def build_moderator(
    settings: ModerationSettings, field: str = "data.moderation", within_s: float | None = None
) -> Moderator:
    """The moderator that `settings` name. `within_s`: somebody waits for it, and no longer than that.

    Raises:
        ConfigError: its patterns, its package or its key are missing or wrong, or a category is none that it assesses;
            naming `field`.
    """
    moderator = _built(settings, field, within_s)
    check_categories(moderator.assessed, settings.thresholds, settings.allowed, field)
    return moderator


def check_categories(
    assessed: Sequence[str], thresholds: Mapping[str, float], allowed: Sequence[str], field: str
) -> None:
    """Return if a policy speaks only of categories that are assessed.

    Raises:
        ConfigError: it does not; naming the category and the field of `field`.
    """
    known = {*assessed, "flagged"}
    for name, categories in (("thresholds", thresholds), ("allowed", allowed)):
        if assessed and (unknown := sorted({*categories} - known)):
            raise ConfigError(
                f"{field}.{name}: {unknown[0]!r} is no category that this moderator assesses; valid: "
                f"{', '.join(sorted(assessed))}"
            )


def _built(settings: ModerationSettings, field: str, within_s: float | None) -> Moderator:
    match settings.kind:
        case "off":
            return NoModerator()
        case "local" if settings.patterns:
            return PatternModerator(_load_patterns(Path(settings.patterns), f"{field}.patterns"))
        case "local":
            if find_spec("profanity_check") is None:
                raise ConfigError(
                    f"{field}.kind: 'local' needs {field}.patterns, or the package alt-profanity-check; run "
                    "`pip install 'vicuna-ray[moderation]'`"
                )
            return ToxicityModerator()
    key = os.environ.get("OPENAI_API_KEY")
    if not key:
        raise ConfigError(f"{field}.kind: 'openai' needs the environment variable OPENAI_API_KEY")
    if not re.match(r"https?://[^/\s\[\]]+", settings.base_url):
        raise ConfigError(f"{field}.base_url: {settings.base_url!r} is not valid; expected http://… or https://…")
    if within_s is None:
        return OpenAiModerator(settings.base_url, settings.model, key)
    return OpenAiModerator(
        settings.base_url, settings.model, key, max_wait_s=within_s / 4, tries=2, timeout_s=within_s / 2
    )


def _load_patterns(path: Path, field: str) -> dict[str, list[str]]:
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{field}: {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"{field}: {path}: expected a mapping of categories to lists of regular expressions")
    return {str(category): _checked(patterns, f"{field}: {path}: {category}") for category, patterns in values.items()}


def _checked(patterns: Any, where: str) -> list[str]:
    if not isinstance(patterns, list) or not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(f"{where}: expected a list of regular expressions")
    for pattern in patterns:
        try:
            matches_nothing = regex.compile(pattern, regex.IGNORECASE | regex.V0).search("") is not None
        except regex.error as error:
            raise ConfigError(f"{where}: {pattern!r} is not a regular expression: {error}") from None
        if matches_nothing:
            raise ConfigError(f"{where}: {pattern!r} matches the empty text, and so every text")
    return patterns
