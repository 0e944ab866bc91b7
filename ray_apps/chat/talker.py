"""Who answers in a chat, behind one Protocol, and what comes of an answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from data_prep.errors import ChatError
from ray_apps.transcript import Message


class TooLongError(ChatError):
    """The chat, with room for an answer, is longer than the model reads."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is chosen: see OpenAI's fields of these names.

    `repetition_penalty` is not OpenAI's, and not sent if it is 1.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 512
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended: `finish_reason` as OpenAI has it, and tokens, None where they are not told."""

    finish_reason: str
    num_prompt_tokens: int | None = None
    num_answer_tokens: int | None = None


class Talker(Protocol):
    """A model that can be talked with."""

    @property
    def name(self) -> str:
        """What the model is called."""
        ...

    def reply(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str | Ending]:
        """Yield the answer piece by piece, and at last how it ended. Closing the iterator stops the work on it.

        Raises:
            TooLongError: the messages do not fit.
            ChatError: there is no answer; the text says why, in words.
        """
        ...

    def close(self) -> None:
        """Release the model or the connection."""
        ...
