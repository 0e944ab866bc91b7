"""What a conversation is. The one place that says what is valid.

A conversation is an optional system message, then user and assistant messages in turn, the user first. It is what every
source is read into, every filter works on and every template renders.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class DropReason(StrEnum):
    """Why a record is not in the dataset. Each drop is counted under one of these."""

    UNREADABLE = "unreadable"
    MISSING_ID = "missing_id"
    NO_MESSAGES = "no_messages"
    UNKNOWN_ROLE = "unknown_role"
    CONTENT_NOT_TEXT = "content_not_text"
    SYSTEM_NOT_FIRST = "system_not_first"
    ROLES_NOT_ALTERNATING = "roles_not_alternating"
    NO_ANSWER = "no_answer"
    TOO_LONG = "too_long"
    EXCLUDED = "excluded"
    TOO_SHORT = "too_short"
    LANGUAGE = "language"
    EMPTY_ANSWER = "empty_answer"
    ERROR_MESSAGE = "error_message"
    BLOCKED_PHRASE = "blocked_phrase"
    PLUGIN = "plugin"
    DIGIT_RUN = "digit_run"
    BROKEN_LIST = "broken_list"
    NON_PRINTABLE = "non_printable"
    REPEATED_LINES = "repeated_lines"
    MODERATION = "moderation"
    DUPLICATE_ID = "duplicate_id"
    DUPLICATE_EXCHANGE = "duplicate_exchange"
    NEAR_DUPLICATE = "near_duplicate"
    EVALUATION_QUESTION = "evaluation_question"
    NOT_SAMPLED = "not_sampled"


class InvalidConversation(ValueError):  # noqa: N818 - named for what it is
    """A record is not a valid conversation; `reason` is what the drop is counted under."""

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `weight` scales the loss on an assistant message; 0 masks the turn and keeps it as context."""

    role: Role
    content: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Conversation:
    """A valid conversation: at most one system message, first; then user and assistant in turn, the user first.

    Raises:
        InvalidConversation: the messages break that rule; the message says which and where.
    """

    id: str
    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        check_messages(self.messages)

    @property
    def system(self) -> str | None:
        """The system message's text, if there is one."""
        return self.messages[0].content if self.messages[0].role is Role.SYSTEM else None

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages after the system message."""
        return self.messages[1:] if self.messages[0].role is Role.SYSTEM else self.messages

    @property
    def has_answer(self) -> bool:
        """Whether there is an assistant message to train on."""
        return len(self.turns) >= 2

    def to_record(self) -> dict[str, Any]:
        """The conversation as an OpenAI-style record: `{"id", "messages": [{"role", "content"[, "weight"]}]}`."""
        return {"id": self.id, "messages": [_message_record(message) for message in self.messages]}


def check_messages(messages: Sequence[Message]) -> None:
    """Raise `InvalidConversation` unless `messages` follow the rule of `Conversation`."""
    if not messages:
        raise InvalidConversation(DropReason.NO_MESSAGES, "a conversation needs at least one message")
    start = 1 if messages[0].role is Role.SYSTEM else 0
    if start == len(messages):
        raise InvalidConversation(DropReason.NO_MESSAGES, "a conversation needs a message besides the system message")
    for index, message in enumerate(messages[start:]):
        if message.role is Role.SYSTEM:
            raise InvalidConversation(
                DropReason.SYSTEM_NOT_FIRST, f"message {start + index}: a system message may only be the first"
            )
        expected = Role.ASSISTANT if index % 2 else Role.USER
        if message.role is not expected:
            raise InvalidConversation(
                DropReason.ROLES_NOT_ALTERNATING,
                f"message {start + index}: expected role {expected.value!r}, found {message.role.value!r}",
            )


# Names seen in shared chats, in whatever case.
ROLE_NAMES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "human": Role.USER,
    "user": Role.USER,
    "gpt": Role.ASSISTANT,
    "chatgpt": Role.ASSISTANT,
    "bing": Role.ASSISTANT,
    "bard": Role.ASSISTANT,
    "assistant": Role.ASSISTANT,
}


def conversation_from_record(
    record: Any,
    *,
    default_id: Callable[[], str] | None = None,
    repair: Callable[[Sequence[Message]], Sequence[Message]] = lambda messages: messages,
) -> Conversation:
    """Read a ShareGPT record (`conversations`: `from`, `value`), an OpenAI one (`messages`: `role`, `content`) or an
    Alpaca one (`instruction`, `input`, `output`).

    A message may carry `weight`. `default_id` names a record without an id; `repair` is given the messages before they
    are judged. A record that breaks the rule is refused.

    Raises:
        InvalidConversation: `reason` says what is wrong.
    """
    if not isinstance(record, Mapping):
        raise InvalidConversation(DropReason.UNREADABLE, f"expected an object, found {type(record).__name__}")
    identifier = record.get("id")
    if identifier is None or identifier == "":
        if default_id is None:
            raise InvalidConversation(DropReason.MISSING_ID, "field 'id' is missing")
        identifier = default_id()
    chat = record.get("conversations") or record.get("messages")
    messages = chat if record.get("instruction") is None else _alpaca(record)
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InvalidConversation(DropReason.NO_MESSAGES, "field 'conversations' or 'messages' must be a filled list")
    read = [_read_message(index, message) for index, message in enumerate(messages)]
    return Conversation(str(identifier), tuple(repair(read)))


def _alpaca(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An instruction with its input below, and the output (Taori et al. 2023)."""
    asked, given = record["instruction"], record.get("input")
    question = f"{asked}\n\n{given}" if isinstance(asked, str) and isinstance(given, str) and given else asked
    return [{"from": "human", "value": question}, {"from": "gpt", "value": record.get("output")}]


def _read_message(index: int, message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise InvalidConversation(DropReason.UNREADABLE, f"message {index}: expected an object")
    name = _either(message, "from", "role")
    role = ROLE_NAMES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise InvalidConversation(DropReason.UNKNOWN_ROLE, f"message {index}: unknown role {name!r}")
    content = _either(message, "value", "content")
    if not isinstance(content, str):
        raise InvalidConversation(DropReason.CONTENT_NOT_TEXT, f"message {index}: the text is {type(content).__name__}")
    weight = message.get("weight")
    if weight is None:
        return Message(role, content)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
        raise InvalidConversation(DropReason.UNREADABLE, f"message {index}: weight {weight!r} is not in [0, 1]")
    return Message(role, content, float(weight))


def _either(message: Mapping[str, Any], one: str, other: str) -> Any:
    """The field `one`, or where that is null, as in tables of several forms, the `other`."""
    value = message.get(one)
    return message.get(other) if value is None else value


def _message_record(message: Message) -> dict[str, Any]:
    record: dict[str, Any] = {"role": message.role.value, "content": message.content}
    return record if message.weight == 1.0 else {**record, "weight": message.weight}
