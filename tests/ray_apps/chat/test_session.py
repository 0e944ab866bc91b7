"""A chat, with a talker that is told what to say."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import ChatError
from ray_apps.chat.session import Session
from ray_apps.chat.talker import Ending, Sampling, TooLongError
from ray_apps.engine.fake import FakeEngine
from ray_apps.transcript import Message


class Typed:
    """Lines as a person types them; where one is to be edited, what is made of it."""

    def __init__(self, *lines: str) -> None:
        self._lines = list(lines)
        self.edited: list[str] = []

    def read(self, *, edited: str = "") -> str | None:
        if edited:
            self.edited.append(edited)
        return self._lines.pop(0) if self._lines else None


class Shown:
    """What is shown, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def begin(self, model: str) -> None:
        self.events.append(("begin", model))

    def open_answer(self, model: str) -> None:
        self.events.append(("answer", ""))

    def piece(self, text: str) -> None:
        self.events[-1] = ("answer", self.events[-1][1] + text)

    def close_answer(self, ending: Ending | None, stats: Any) -> None:
        if ending is None:
            self.events.append(("cut", ""))

    def notice(self, text: str) -> None:
        self.events.append(("notice", text))

    def error(self, text: str) -> None:
        self.events.append(("error", text))

    def of(self, kind: str) -> list[str]:
        return [text for event, text in self.events if event == kind]


class Echo:
    """Says what was asked; `limit` messages are too many; some questions do something else."""

    name = "echo"

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self.asked: list[list[Message]] = []

    def reply(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str | Ending]:
        if len(messages) > self.limit:
            raise TooLongError(f"{len(messages)} messages")
        self.asked.append(list(messages))
        match messages[-1]["content"]:
            case "fail":
                raise ChatError("busy; try again in 3 s")
            case "break":
                yield "half"
                raise ChatError("the connection was lost")
            case "stop":
                yield "half"
                raise KeyboardInterrupt
            case "filtered":
                yield "no"
                yield Ending("content_filter")
            case text:
                yield f"re: {text}"
                yield Ending("stop", 3, 2)

    def close(self) -> None:
        pass


def talk(*lines: str, talker: Echo | None = None, system: str | None = None) -> tuple[Shown, Session, Echo]:
    shown, talker = Shown(), talker or Echo()
    session = Session(talker, shown, Sampling(), system)
    session.run(Typed(*lines))
    return shown, session, talker


def contents(messages: Sequence[Message]) -> list[str]:
    return [message["content"] for message in messages]


def test_the_model_is_told_all_that_was_said() -> None:
    shown, session, talker = talk("one", "", "two", "/exit", "never", system="brief")
    assert shown.of("answer") == ["re: one", "re: two"]
    assert contents(talker.asked[-1]) == ["brief", "one", "re: one", "two"]
    assert not session.has_failed


def test_what_is_taken_back_and_asked_again() -> None:
    _, _, talker = talk("one", "two", "/remove", "three", "/regenerate", "/edit four", "/reset", "five")
    assert [contents(asked) for asked in talker.asked[2:]] == [
        ["one", "re: one", "three"],
        ["one", "re: one", "three"],
        ["one", "re: one", "four"],
        ["five"],
    ]


def test_a_question_is_edited_where_it_was_typed() -> None:
    typed, shown, talker = Typed("first", "/edit", "second"), Shown(), Echo()
    Session(talker, shown, Sampling()).run(typed)
    assert typed.edited == ["first"]
    assert contents(talker.asked[-1]) == ["second"]


def test_there_is_nothing_yet() -> None:
    shown, session, _ = talk("/remove", "/regenerate", "/edit", "/edit x", "/stats", "/system")
    assert shown.of("notice") == [
        "there is nothing to take back",
        *["nothing has been asked yet"] * 3,
        "nothing has been answered yet",
        "system prompt: none",
    ]
    assert not session.has_failed


def test_an_answer_that_is_stopped_keeps_what_was_said() -> None:
    shown, session, talker = talk("stop", "go on")
    assert shown.events[1:4] == [("answer", "half"), ("notice", "stopped"), ("cut", "")]
    assert contents(talker.asked[-1]) == ["stop", "half", "go on"]
    assert not session.has_failed


def test_errors_are_said_and_the_question_stays() -> None:
    shown, session, talker = talk("fail", "/regenerate", "other", "break", "and?", "/nonsense")
    assert shown.of("error") == [
        "busy; try again in 3 s",
        "busy; try again in 3 s",
        "the connection was lost",
        "there is no command /nonsense; /help lists them",
    ]
    assert contents(talker.asked[2]) == ["other"]
    assert contents(talker.asked[-1]) == ["other", "re: other", "break", "half", "and?"]
    assert session.has_failed


def test_a_long_chat_loses_its_oldest_turns_with_a_notice() -> None:
    shown, _, talker = talk("one", "two", "three", talker=Echo(limit=4), system="brief")
    assert contents(talker.asked[-1]) == ["brief", "two", "re: two", "three"]
    assert shown.of("notice") == ["the oldest question and its answer are left out from here on: 6 messages"]
    shown, session, _ = talk("one", talker=Echo(limit=0))
    assert shown.of("error") == ["1 messages"]
    assert session.has_failed


def test_what_moderation_stopped_is_said() -> None:
    shown, _, _ = talk("filtered")
    assert shown.of("notice") == ["the answer was stopped by moderation"]


def test_a_chat_is_saved_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    shown, _, talker = talk(
        "one", f"/save {path}", "/reset", f"!!load {path}", "/system new", "two", f"/load {tmp_path}"
    )
    assert contents(talker.asked[-1]) == ["new", "one", "re: one", "two"]
    assert json.loads(path.read_text())["model"] == "echo"
    assert "Is a directory" in shown.of("error")[0]


def test_the_last_answer_s_figures() -> None:
    shown, _, _ = talk("one", "/stats")
    assert shown.of("notice")[0].startswith("prompt_tokens 3, completion_tokens 2, ttft_s 0.")


def test_a_model_of_this_machine() -> None:
    from ray_apps.chat.local import LocalModel

    talker = LocalModel(FakeEngine(max_model_len=100), "models/echo")
    shown = Shown()
    session = Session(talker, shown, Sampling(max_tokens=40))
    session.run(Typed("你好", "x" * 30, "y" * 30, "z" * 95))
    talker.close()
    assert shown.of("answer") == ["你好", "x" * 30, "y" * 30]
    assert "left out from here on" in shown.of("notice")[0]
    assert "of 100 that the model reads" in shown.of("error")[0]
