"""What a person does on the page, and what becomes of it."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_apps.engine.fake import FakeEngine
from ray_apps.serve.backend import EngineBackend
from ray_apps.serve.policy import Page
from ray_apps.serve.routing import ServedModel
from ray_apps.serve.web.asking import Asking
from ray_apps.serve.web.markdown import harmless, plain
from ray_apps.serve.web.rooms import UNCHANGED, Mode, Room, Visit
from ray_apps.votes import Vote, VoteFile

SETTINGS: tuple[Any, ...] = ("", 0.7, 1.0, 100)
NAMES = ("alpaca", "llama", "vicuna")


class Visited:
    """A room on fake engines, which say what they are told, and a visit to it."""

    def __init__(self, mode: Mode, folder: Path, engine: FakeEngine | None = None, **page: Any) -> None:
        self.engine = engine or FakeEngine()
        models = [ServedModel(name, EngineBackend(self.engine, stream_interval_s=0)) for name in NAMES]
        settings = Page(**page)
        self._votes = VoteFile(folder / "votes.jsonl")
        self.room = Room(mode, Asking(models, settings), self._votes, settings)
        self.visit = Visit()
        self.models = {"chat": ("vicuna",), "side_by_side": ("vicuna", "alpaca"), "battle": ()}[mode]
        self.shown: list[Any] = []

    async def all_of(self, showing: AsyncIterator[list[Any]]) -> list[list[Any]]:
        found = [shown async for shown in showing]
        self.shown = found[-1]
        return found

    async def send(self, text: str) -> list[list[Any]]:
        return await self.all_of(self.room.send(self.visit, text, *SETTINGS, *self.models))

    @property
    def note(self) -> str:
        return str(self.shown[2])

    def chat(self, lane: int = 0) -> list[str]:
        return [message["content"] for message in self.shown[3 + lane]]

    @property
    def votes(self) -> list[Vote]:
        return list(self._votes.read())


async def test_an_answer_grows_and_the_field_is_free(tmp_path: Path) -> None:
    visited = Visited("chat", tmp_path)
    steps = await visited.send("hello world")
    assert visited.chat() == ["hello world", "hello world"]
    assert visited.note.startswith("First token after")
    assert [step[1] for step in steps] == ["", *[UNCHANGED] * (len(steps) - 1)]  # what is typed meanwhile stays
    growing = [step[3][-1]["content"] for step in steps]
    assert growing[0] == "…"
    assert len(set(growing)) > 2
    await visited.send("   ")
    assert visited.chat() == ["hello world", "hello world"]


async def test_asked_again_edited_taken_back_and_begun_anew(tmp_path: Path) -> None:
    visited = Visited("chat", tmp_path)
    await visited.send("one")
    await visited.send("two")
    await visited.all_of(visited.room.regenerate(visited.visit, *SETTINGS, "llama"))
    assert visited.chat() == ["one", "one", "two", "two"]
    await visited.all_of(visited.room.edit(visited.visit, 2, "three", *SETTINGS, "llama"))
    assert visited.chat() == ["one", "one", "three", "three"]
    visited.shown = visited.room.undo(visited.visit)
    assert (visited.shown[1], visited.chat()) == ("three", ["one", "one"])
    visited.shown = visited.room.clear(visited.visit)
    assert visited.chat() == []
    await visited.all_of(visited.room.regenerate(visited.visit, *SETTINGS, "llama"))
    assert visited.note == "There is nothing to answer again."


async def test_what_was_said_stays_when_an_answer_is_stopped(tmp_path: Path) -> None:
    visited = Visited("chat", tmp_path, FakeEngine(pause_s=0.01))
    showing: Any = visited.room.send(visited.visit, "a long answer " * 20, *SETTINGS, "vicuna")
    async for shown in showing:
        if len(shown[3][-1]["content"]) > 20:
            break
    await showing.aclose()
    said = visited.visit.lanes[0].transcript.messages[-1]
    assert said["role"] == "assistant"
    assert said["content"] != "a long answer " * 20
    assert said["content"].startswith("a long answer")
    assert visited.engine.num_running == 0
    await visited.send("next")
    assert visited.chat()[-1] == "next"


async def test_errors_are_said_below_and_the_question_stays(tmp_path: Path) -> None:
    visited = Visited("chat", tmp_path, max_characters=10)
    await visited.send("x" * 11)
    assert visited.note == "This message has 11 characters; at most 10 are taken."
    assert visited.shown[1] == "x" * 11
    assert visited.chat() == []
    await visited.send("short")
    assert visited.chat() == ["short", "short"]
    await visited.all_of(visited.room.edit(visited.visit, 0, "y" * 11, *SETTINGS, "llama"))
    assert visited.chat() == ["short", "short"]
    await visited.all_of(visited.room.send(visited.visit, "z", "s" * 11, *SETTINGS[1:], "llama"))
    assert visited.note == "The system prompt has 11 characters; at most 10 are taken."


async def test_two_models_answer_side_by_side(tmp_path: Path) -> None:
    visited = Visited("side_by_side", tmp_path)
    await visited.send("hi")
    assert visited.chat(0) == visited.chat(1) == ["hi", "hi"]
    assert re.fullmatch(r"A: First token .*\. B: First token .*\.", visited.note)
    visited.shown = visited.room.vote(visited.visit, "b")
    (vote,) = visited.votes
    assert (vote.kind, vote.models, vote.verdict, vote.num_turns) == ("side_by_side", ("vicuna", "alpaca"), "b", 1)
    assert vote.chats[0] == ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"})
    await visited.send("and on")  # names were known all along: it goes on
    assert visited.chat()[-1] == "and on"


async def test_a_battle_names_nobody_before_the_vote(tmp_path: Path) -> None:
    seen = set()
    for _ in range(30):
        visited = Visited("battle", tmp_path, keeps_texts=False)
        steps = await visited.send("hi")
        assert not any(name in str(step[1:]) for step in steps for name in NAMES)
        seen.add(tuple(lane.model for lane in visited.visit.lanes))
        visited.shown = visited.room.vote(visited.visit, "tie")
    assert len(seen) > 3
    assert all(left != right for left, right in seen)
    assert visited.note == "Thank you. It was {} against {}.".format(*visited.votes[-1].models)
    assert visited.votes[-1].chats == ()
    await visited.send("more")
    assert visited.note == "The vote is given: begin a new battle."
    visited.shown = visited.room.vote(visited.visit, "a")
    assert len(visited.votes) == 30


async def test_thumbs_and_flags(tmp_path: Path) -> None:
    visited = Visited("chat", tmp_path)
    await visited.send("hi")
    assert [visited.room.rate(visited.visit, liked) for liked in (True, False, "Flag")] == ["Thank you."] * 3
    assert [(vote.kind, vote.verdict) for vote in visited.votes] == [
        ("thumb", "up"),
        ("thumb", "down"),
        ("flag", "flag"),
    ]
    assert len({vote.session for vote in visited.votes}) == 1


async def test_a_chat_leaves_and_comes_back(tmp_path: Path) -> None:
    visited = Visited("chat", tmp_path)
    assert visited.room.export(visited.visit) is None
    await visited.send("你好")
    path = visited.room.export(visited.visit)
    assert path is not None
    other = Visited("chat", tmp_path)
    other.shown = other.room.load(other.visit, path, "llama")
    assert other.chat() == ["你好", "你好"]
    (tmp_path / "broken.json").write_text("{")
    other.shown = other.room.load(other.visit, str(tmp_path / "broken.json"), "llama")
    assert other.note.startswith("broken.json: not a saved chat")
    assert other.chat() == ["你好", "你好"]


async def test_while_an_answer_is_coming_others_wait_and_nothing_gets_mixed_up(tmp_path: Path) -> None:
    visited = Visited("chat", tmp_path, FakeEngine(pause_s=0.01))
    await visited.send("first")
    for meanwhile in ("undo", "clear", "load", "stopped"):
        under_way = visited.room.send(visited.visit, "second one", *SETTINGS, "vicuna")
        for _ in range(3):
            await anext(under_way)
        await visited.send("third")
        assert visited.note == "An answer is under way: stop it first."
        assert visited.shown[1] == "third"
        if meanwhile == "load":
            path = tmp_path / "chat.json"
            path.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}')
            visited.room.load(visited.visit, str(path), "vicuna")
        else:
            getattr(visited.room, meanwhile)(visited.visit)
        async for shown in under_way:
            visited.shown = shown
        roles = [message["role"] for lane in visited.visit.lanes for message in lane.transcript.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert (meanwhile == "stopped") == (
            "second one" in str(visited.visit.lanes and visited.visit.lanes[0].transcript.messages)
        )
        visited.room.clear(visited.visit)
        await visited.send("first")


async def test_stopped_before_a_word_nothing_spins_on(tmp_path: Path) -> None:
    visited = Visited("chat", tmp_path, FakeEngine(pause_s=5))
    under_way = visited.room.send(visited.visit, "slow", *SETTINGS, "vicuna")
    visited.shown = await anext(under_way)
    assert visited.chat() == ["slow", "…"]
    await under_way.aclose()
    visited.shown = visited.room.stopped(visited.visit)
    assert (visited.chat(), visited.note) == (["slow"], "Stopped.")


async def test_a_failed_second_try_leaves_the_answer(tmp_path: Path) -> None:
    visited = Visited("chat", tmp_path)
    await visited.send("one")
    visited.engine._fail_after = 0
    await visited.all_of(visited.room.regenerate(visited.visit, *SETTINGS, "llama"))
    assert "could not be generated" in visited.note
    assert visited.chat() == ["one", "one"]


async def test_votes_need_two_answers_and_count_once(tmp_path: Path) -> None:
    visited = Visited("side_by_side", tmp_path, FakeEngine(fail_after=0))
    await visited.send("hi")
    visited.shown = visited.room.vote(visited.visit, "a")
    assert visited.note == "There are not two answers to vote on yet."
    visited.engine._fail_after = None
    await visited.send("hi")
    for _ in range(3):
        visited.shown = visited.room.vote(visited.visit, "a")
    assert visited.note == "You have voted on these answers."
    await visited.send("more")
    visited.room.vote(visited.visit, "b")
    assert [vote.verdict for vote in visited.votes] == ["a", "b"]


async def test_a_thumb_is_about_one_answer_and_counts_once(tmp_path: Path) -> None:
    visited = Visited("chat", tmp_path)
    await visited.send("one")
    await visited.send("two")
    for liked, place in [(True, 1), (True, 1), (False, 1), ("Flag", 3), ("Flag", 3)]:
        visited.room.rate(visited.visit, liked, 0, place)
    assert [(vote.verdict, vote.num_turns, len(vote.chats[0])) for vote in visited.votes] == [
        ("up", 1, 2),
        ("down", 1, 2),
        ("flag", 2, 4),
    ]


async def test_sides_that_have_drifted_apart_are_edited_alike(tmp_path: Path) -> None:
    visited = Visited("side_by_side", tmp_path)
    await visited.send("one")
    await visited.send("two")
    del visited.visit.lanes[1].transcript.messages[:2]  # as if its first answer had failed
    await visited.all_of(visited.room.edit(visited.visit, 2, "TWO", *SETTINGS, *visited.models))
    assert visited.chat(0) == ["one", "one", "TWO", "TWO"]
    assert visited.chat(1) == ["TWO", "TWO"]


async def test_a_loaded_chat_brings_its_system_prompt_and_model(tmp_path: Path) -> None:
    visited = Visited("chat", tmp_path)
    await visited.all_of(visited.room.send(visited.visit, "hi", "Be brief.", *SETTINGS[1:], "llama"))
    saved = visited.room.export(visited.visit)
    assert saved is not None
    *_, system, model = visited.room.load(Visit(), saved, "vicuna")
    assert (system, model) == ("Be brief.", "llama")
    (tmp_path / "odd.json").write_text("[" * 100_000)
    shown = visited.room.load(visited.visit, str(tmp_path / "odd.json"), "vicuna")
    assert shown[2].startswith("odd.json: ")
    assert shown[3][0]["content"] == "hi"


GAP = "\N{ZERO WIDTH SPACE}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script> & **bold**", f"<{GAP}script>alert(1)<{GAP}/script> & **bold**"),
        ("![](http://outside/x.png)", f"!{GAP}[](http://outside/x.png)"),
        ("\\![](http://outside/x.png)", f"\\!{GAP}[](http://outside/x.png)"),
        ("`<b>` and <b>", f"`<{GAP}b>` and <{GAP}b>"),
        ("\\`<img src=x>\\`", f"\\`<{GAP}img src=x>\\`"),
        ("a ` b\n\n`<img src=x>`\n\nc ` d", f"a ` b\n\n`<{GAP}img src=x>`\n\nc ` d"),
        ("AT&T, a < b & c, a<3", "AT&T, a < b & c, a<3"),
        ("&lt;b&gt; &#60;", f"&{GAP}lt;b&{GAP}gt; &{GAP}#60;"),
        ("```html\n<b>\n```\n<i>", f"```html\n<b>\n```\n<{GAP}i>"),
        ("```html\n<b> still open", "```html\n<b> still open"),
        ("```py\nx\n```y\n<a>\n```\n\n`<img>`\n\n```", f"```py\nx\n```y\n<a>\n```\n\n`<{GAP}img>`\n\n```"),
        ("- a\n  ```\n  <b>\n  ```\n- <i>", f"- a\n  ```\n  <b>\n  ```\n- <{GAP}i>"),
    ],
)
def test_markdown_is_shown_and_does_nothing(text: str, shown: str) -> None:
    assert harmless(text) == shown
    assert plain(shown) == text


@given(st.text(alphabet="`~<b>!\n[ ](a)&;\\-"))
def test_outside_of_fences_nothing_is_html(text: str) -> None:
    shown = harmless(text)
    assert plain(shown) == text
    if "```" not in text and "~~~" not in text:
        assert not re.search(r"<[a-z/!?]|!\[", shown)
