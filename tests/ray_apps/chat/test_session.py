"""A chat, with a talker that is told what to say."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import ChatError
from ray_apps.chat.session import Session
from ray_apps.chat.styles import RichStyle, SimpleStyle
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
    assert shown.events[1:4] == [("answer", "half"), ("cut", ""), ("notice", "stopped")]
    assert contents(talker.asked[-1]) == ["stop", "half", "go on"]
    assert not session.has_failed


def test_errors_are_said_and_the_question_stays() -> None:
    shown, session, talker = talk("fail", "/regenerate", "other", "break", "and?", "/nonsense")
    assert shown.of("error") == [
        "busy; try again in 3 s",
        "busy; try again in 3 s",
        "the connection was lost",
        "there is no command /nonsense; /help lists them, // begins a message",
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
    assert shown.of("error") == [f"{tmp_path}: is a directory; expected a file"]


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


def test_odd_paths_are_one_line_and_the_chat_goes_on(tmp_path: Path) -> None:
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    lines = ["/save .", "/save /", "/save ~nobody-here/x.json", "/save a\0b", f"/load {deep}", "/load ~nobody-here/x"]
    shown, _, talker = talk("one", *lines, "two")
    assert len(shown.of("error")) == len(lines)
    assert contents(talker.asked[-1]) == ["one", "re: one", "two"]


def test_an_edit_that_is_not_sent_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    talk("one", "/edit", f"/save {path}")
    assert [message["content"] for message in json.loads(path.read_text())["messages"]] == ["one", "re: one"]
    _, _, talker = talk("one", "/edit", "changed")
    assert contents(talker.asked[-1]) == ["changed"]


def test_a_failed_second_try_leaves_the_answer(tmp_path: Path) -> None:
    class Once(Echo):
        def reply(self, messages: Any, sampling: Any) -> Any:
            if self.asked:
                raise ChatError("busy")
            return super().reply(messages, sampling)

    path = tmp_path / "chat.json"
    talk("one", "/regenerate", f"/save {path}", talker=Once())
    assert [message["content"] for message in json.loads(path.read_text())["messages"]] == ["one", "re: one"]


def test_a_message_that_is_too_long_does_not_cost_the_chat() -> None:
    class Short(Echo):
        def reply(self, messages: Any, sampling: Any) -> Any:
            if messages[-1]["content"] == "huge":
                raise TooLongError("too long")
            return super().reply(messages, sampling)

    _, _, talker = talk("a", "b", "huge", "small", talker=Short())
    assert contents(talker.asked[-1]) == ["a", "re: a", "b", "re: b", "small"]


def test_a_message_may_begin_with_a_slash_and_a_prompt_may_go() -> None:
    shown, _, talker = talk("/system new", "/system none", "//etc what is it")
    assert contents(talker.asked[-1]) == ["/etc what is it"]
    assert shown.of("notice")[-1] == "system prompt: none"


@pytest.mark.parametrize("kind", [SimpleStyle, RichStyle])
def test_a_model_does_not_command_the_terminal(kind: Any, capsys: pytest.CaptureFixture[str]) -> None:
    style = kind(names_speakers=False) if kind is SimpleStyle else kind()
    style.open_answer("m")
    style.piece("a\x1b]0;pwned\x07\x1b[2Jb\tc\n")
    style.close_answer(None, {})
    assert "\x1b]0" not in (shown := capsys.readouterr().out)
    assert "\x1b[2J" not in shown
