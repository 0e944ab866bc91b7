"""How the page asks the models: in this process, through the same backends as the API."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from pydantic import ValidationError

from ray_apps.serve import chat
from ray_apps.serve.affinity import session_of
from ray_apps.serve.answers import new_id
from ray_apps.serve.deadline import until
from ray_apps.serve.errors import ApiError, Failure, failure_of
from ray_apps.serve.policy import Page
from ray_apps.serve.protocol.chat_request import ChatCompletionRequest
from ray_apps.serve.rate_limits import Rates
from ray_apps.serve.record import ANYBODY, RequestRecord, begin, current_request
from ray_apps.serve.request_log import Journal
from ray_apps.serve.routing import Router, ServedModel

Messages = Sequence[dict[str, str]]
PATH = "page"
"""What the request log has for an answer on the page."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks: the name of their API key, and of their chat, by which a replica that has read it is found."""

    key_name: str = ANYBODY
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """As OpenAI's fields of these names."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 512


@dataclass(frozen=True, slots=True)
class Said:
    """An answer so far. `note`: what a person should know of it; of the last one also what it took."""

    text: str
    note: str = ""
    is_over: bool = False


class AskError(Exception):
    """There is no answer, or no more of it; the text says why, in words for a person."""


class Asking:
    """Asks `models` within the limits of `page` and of `rates`; `journal` is told of each answer as of a request."""

    def __init__(
        self, models: Sequence[ServedModel], page: Page, rates: Rates | None = None, journal: Journal | None = None
    ) -> None:
        self._router = Router(models)
        self._page = page
        self._rates = rates or Rates()
        self._journal = journal or Journal()
        self.names = [name for model in models for name in (model.name, *model.adapters)]

    def check(self, messages: Messages) -> None:
        """Return if a chat that ends with a question may be asked.

        Raises:
            AskError: it is too long for this page.
        """
        num_turns = sum(message["role"] == "user" for message in messages)
        if num_turns > self._page.max_turns:
            raise AskError(f"This chat has had its {self._page.max_turns} questions; begin a new one.")
        self.check_lengths(messages)

    def check_lengths(self, messages: Messages) -> None:
        """Return if nothing that a person has written is longer than this page takes. Raises as `check`."""
        names = {"user": "This message", "system": "The system prompt"}
        for message in messages:
            length, name = len(message["content"]), names.get(message["role"])
            if name and length > self._page.max_characters:
                raise AskError(f"{name} has {length:,} characters; at most {self._page.max_characters:,} are taken.")

    async def reply(
        self, model: str, messages: Messages, sampling: Sampling, visitor: Visitor | None = None
    ) -> AsyncGenerator[Said, None]:
        """Yield the answer as it grows; closing the generator stops the work on it.

        Raises:
            AskError: there is none, or it breaks off.
        """
        self.check(messages)
        visitor = visitor or Visitor()
        record = RequestRecord(key_name=visitor.key_name, method="POST", path=PATH)
        begin(record)
        try:
            self._rates.enter(visitor.key_name)
            try:
                async with aclosing(self._reply(model, messages, sampling, visitor)) as answer:
                    async for said in answer:
                        record.status = 200
                        yield said
            finally:
                self._rates.leave(record)
        except ValidationError as error:
            record.status = 400
            raise AskError(str(error.errors()[0]["msg"])) from None
        except Exception as error:
            failure = error.failure if isinstance(error, ApiError) else failure_of(error)
            record.status = record.status or failure.status
            raise AskError(in_words(failure)) from None
        finally:
            self._journal.ended(record)

    async def _reply(
        self, model: str, messages: Messages, sampling: Sampling, visitor: Visitor
    ) -> AsyncGenerator[Said, None]:
        """As much of an answer as was asked for, or, where there is no room for it, what there is."""
        is_begun = False
        try:
            async with aclosing(self._told(model, messages, sampling, sampling.max_tokens, visitor)) as answer:
                async for said in answer:
                    is_begun = True
                    yield said
            return
        except ApiError as error:
            if is_begun or error.failure.code != "context_length_exceeded":
                raise
        current_request().finish_reasons.clear()
        async with aclosing(self._told(model, messages, sampling, None, visitor)) as answer:
            async for said in answer:
                yield said

    async def _told(
        self, model: str, messages: Messages, sampling: Sampling, max_tokens: int | None, visitor: Visitor
    ) -> AsyncGenerator[Said, None]:
        text, started, first = "", time.monotonic(), None
        route = self._router.find(model)
        job = chat.make_job(_request(model, messages, sampling, max_tokens), new_id("page"), route.adapter)
        job = replace(job, session=session_of(job, route.name, visitor.session))
        async with aclosing(until(route.model.backend.generate(job), route.model.request_timeout_s)) as deltas:
            async for delta in deltas:
                first = first or time.monotonic()
                text += delta.text
                note = _note(delta.num_dropped, delta.finish_reason)
                if delta.finish_reason:
                    took = _took(started, first, delta.num_completion_tokens)
                    yield Said(text, " ".join(filter(None, (note, took))), is_over=True)
                    return
                yield Said(text, note)


def _request(model: str, messages: Messages, sampling: Sampling, max_tokens: int | None) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate(
        {
            "model": model,
            "messages": list(messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": max_tokens,
            "truncate": "oldest_turns",
            "stream": True,
        }
    )


def _note(num_dropped: int, finish_reason: str | None) -> str:
    notes = []
    if num_dropped:
        notes.append(f"The {num_dropped} oldest messages no longer fit and were left out.")
    if finish_reason == "length":
        notes.append("The answer was cut at its longest.")
    if finish_reason == "content_filter":
        notes.append("The answer was stopped by moderation.")
    return " ".join(notes)


def _took(started: float, first: float, num_tokens: int) -> str:
    seconds = time.monotonic() - first
    rate = f", {(num_tokens - 1) / seconds:.1f} tokens/s" if num_tokens > 1 and seconds > 0 else ""
    return f"First token after {first - started:.2f} s{rate}."


def in_words(failure: Failure) -> str:
    """What a failure means to whoever chats."""
    match failure.status, failure.code:
        case _, "context_length_exceeded":
            return "This message is too long for the model."
        case _, "content_filter":
            return failure.message.replace("The request was refused", "Refused")
        case _, "moderation_unavailable":
            return "Nothing can be answered now, for it cannot be moderated. Try again later."
        case ((429 | 503), _) if failure.retry_after_s:
            return f"Busy: try again in {failure.retry_after_s} s."
        case ((429 | 503), _):
            return "Busy: try again later."
    return failure.message
