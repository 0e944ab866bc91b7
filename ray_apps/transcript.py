"""What has been said in a chat, and what may be done to it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import ChatError
from data_prep.storage import write_text

Message = dict[str, str]


class Transcript:
    """A system prompt, then questions and answers in turn; the last question may be without an answer."""

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        self.messages: list[Message] = []
        self.num_left_out = 0
        """How many of the oldest messages the model is no longer told."""

    @property
    def sent(self) -> list[Message]:
        """What the model is told."""
        system = [] if self.system is None else [_message("system", self.system)]
        return [*system, *self.messages[self.num_left_out :]]

    @property
    def last_question(self) -> str | None:
        """What was asked last."""
        return next((message["content"] for message in reversed(self.messages) if message["role"] == "user"), None)

    def ask(self, text: str) -> None:
        """Add a question; it takes the place of one that has no answer."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()
        self.messages.append(_message("user", text))

    def answer(self, text: str) -> None:
        """Add the answer to the last question."""
        self.messages.append(_message("assistant", text))

    def forget_oldest(self) -> bool:
        """No longer tell the model the oldest question and its answer; whether there was one beside the last."""
        if self.num_left_out + 2 >= len(self.messages):
            return False
        self.num_left_out += 2
        return True

    def reset(self) -> None:
        """Begin anew, with the same system prompt."""
        self.messages.clear()
        self.num_left_out = 0

    def remove(self) -> bool:
        """Take the last question back, with its answer; whether there was one."""
        return self._take_back("user")

    def remove_answer(self) -> bool:
        """Take the last answer back, so that the question is open again; whether there is a question."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            self._take_back("assistant")
        return bool(self.messages)

    def cut(self, count: int) -> None:
        """Keep only the first `count` messages."""
        del self.messages[count:]
        self.num_left_out = min(self.num_left_out, max(0, len(self.messages) - 1) // 2 * 2)

    def _take_back(self, role: str) -> bool:
        while self.messages:
            taken = self.messages.pop()
            if taken["role"] == role:
                self.cut(len(self.messages))
                return True
        return False

    def save(self, path: Path, model: str) -> None:
        """Write it as JSON: `model`, and `messages` as OpenAI has them."""
        system = [] if self.system is None else [_message("system", self.system)]
        content = {"model": model, "messages": [*system, *self.messages]}
        write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")

    def load(self, path: Path) -> None:
        """Take the place of what is said now by what `save`, or FastChat's command line, has written.

        Raises:
            ChatError: it is neither; nothing is changed.
            OSError: it cannot be read.
        """
        try:
            content = json.loads(path.read_text("utf-8"))
            if not isinstance(content, dict):
                raise TypeError("expected an object with messages")
            messages = _checked(_from_fastchat(content) if "roles" in content else content["messages"])
        except RecursionError:
            raise ChatError(f"{path}: not a saved chat: it is nested too deeply") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ChatError(f"{path}: not a saved chat: {_reason(error)}") from None
        system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
        if wrong := _first_out_of_turn(messages):
            raise ChatError(
                f"{path}: messages[{wrong[0]}]: {wrong[1]!r} is out of turn; valid: user and assistant in turn"
            )
        self.reset()
        self.system, self.messages = system, messages


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _checked(messages: Sequence[Any]) -> list[Message]:
    for number, message in enumerate(messages):
        if not isinstance(message["role"], str) or not isinstance(message["content"], str):
            raise TypeError(f"messages[{number}]: role and content should be text")
    return [_message(message["role"], message["content"]) for message in messages]


def _from_fastchat(content: dict[str, Any]) -> list[Message]:
    """`roles`, `messages` as pairs of a role and a text, and how many of them are the template's own examples."""
    names = dict(zip(content["roles"], ("user", "assistant"), strict=True))
    pairs = content["messages"][content.get("offset", 0) :]
    messages = [_message(names[role], text) for role, text in pairs if text is not None]
    system = content.get("system_message")
    return [_message("system", system), *messages] if system else messages


def _first_out_of_turn(messages: Sequence[Message]) -> tuple[int, str] | None:
    for number, message in enumerate(messages):
        if message["role"] != ("user", "assistant")[number % 2]:
            return number, message["role"]
    return None


def _reason(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
