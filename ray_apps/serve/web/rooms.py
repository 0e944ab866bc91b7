"""What can be done on the page, without the page: what is said is kept here, in lanes, one for each model."""

import asyncio
import random
import tempfile
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_prep.errors import ChatError
from ray_apps.serve.policy import Page
from ray_apps.serve.record import ANYBODY
from ray_apps.serve.web.asking import AskError, Asking, Said, Sampling, Visitor
from ray_apps.serve.web.markdown import harmless
from ray_apps.transcript import Transcript
from ray_apps.votes import Kind, Vote, VoteFile

Mode = Literal["chat", "side_by_side", "battle"]
THUMBS: dict[object, tuple[Kind, str]] = {True: ("thumb", "up"), False: ("thumb", "down"), "Flag": ("flag", "flag")}
"""What a thumb, or a flag, of gradio's says."""


@dataclass
class Lane:
    """What is said with one model."""

    model: str
    transcript: Transcript = field(default_factory=Transcript)

    def shown(self, growing: str | None = None) -> list[dict[str, str]]:
        """As the page shows it, with an answer that is still growing."""
        messages = [{**message, "content": harmless(message["content"])} for message in self.transcript.messages]
        return messages if growing is None else [*messages, {"role": "assistant", "content": harmless(growing) or "…"}]


class Visit:
    """One tab of one visitor. `is_voted`: the models of a battle are known, so that it is over.

    No dataclass: gradio would make a dict of it.
    """

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.session = uuid.uuid4().hex
        self.key_name = ANYBODY
        self.is_voted = False


class Room:
    """What can be done in one of the three modes. Every method gives what `outputs` show next."""

    def __init__(self, mode: Mode, asking: Asking, votes: VoteFile | None, settings: Page) -> None:
        self.mode = mode
        self.num_lanes = 1 if mode == "chat" else 2
        self._asking = asking
        self._votes = votes
        self._settings = settings

    async def send(
        self, visit: Visit, text: str, system: str, temperature: float, top_p: float, max_tokens: float, *models: str
    ) -> AsyncGenerator[list[Any], None]:
        """Ask every lane's model; what it takes is told at the end."""
        if not (text or "").strip():
            yield self._show(visit, text, "")
            return
        if visit.is_voted:
            yield self._show(visit, text, "The vote is given: begin a new battle.")
            return
        self._prepare(visit, models)
        for lane in visit.lanes:
            lane.transcript.system = (system or "").strip() or None
            lane.transcript.ask(text)
        async with aclosing(self._answer(visit, Sampling(temperature, top_p, int(max_tokens)))) as answer:
            async for shown in answer:
                yield shown

    async def regenerate(
        self, visit: Visit, system: str, temperature: float, top_p: float, max_tokens: float, *models: str
    ) -> AsyncGenerator[list[Any], None]:
        """Ask the last question once more."""
        if not visit.lanes or visit.is_voted:
            yield self._show(visit, "", "There is nothing to answer again.")
            return
        self._prepare(visit, models)
        for lane in visit.lanes:
            lane.transcript.remove_answer()
            lane.transcript.system = (system or "").strip() or None
        async with aclosing(self._answer(visit, Sampling(temperature, top_p, int(max_tokens)))) as answer:
            async for shown in answer:
                yield shown

    async def edit(
        self,
        visit: Visit,
        place: int,
        text: str,
        system: str,
        temperature: float,
        top_p: float,
        max_tokens: float,
        *models: str,
    ) -> AsyncGenerator[list[Any], None]:
        """Ask something else in place of message number `place`; what followed it is gone."""
        for lane in visit.lanes:
            lane.transcript.cut(place)
        sent = self.send(visit, text, system, temperature, top_p, max_tokens, *models)
        async with aclosing(sent) as answer:
            async for shown in answer:
                yield shown

    def undo(self, visit: Visit) -> list[Any]:
        """Take the last question back into the field where it was typed."""
        question = visit.lanes[0].transcript.last_question or "" if visit.lanes else ""
        for lane in visit.lanes:
            lane.transcript.remove()
        return self._show(visit, question, "")

    def clear(self, visit: Visit) -> list[Any]:
        """Begin anew."""
        visit.lanes, visit.is_voted = [], False
        return self._show(visit, "", "")

    def vote(self, visit: Visit, verdict: str) -> list[Any]:
        """Note which answer is better; in a battle the names are told then."""
        if self._votes is None or not visit.lanes or visit.is_voted:
            return self._show(visit, "", "There is nothing to vote on.")
        kind: Kind = "battle" if self.mode == "battle" else "side_by_side"
        self._note(visit, visit.lanes, kind, verdict)
        visit.is_voted = self.mode == "battle"
        names = " against ".join(lane.model for lane in visit.lanes)
        return self._show(visit, "", f"Thank you. It was {names}." if visit.is_voted else "Thank you.")

    def rate(self, visit: Visit, liked: object, lane: int = 0) -> str:
        """Note a thumb or a flag."""
        if self._votes is None or not visit.lanes:
            return "Opinions are not kept here."
        kind, verdict = THUMBS[liked]
        self._note(visit, [visit.lanes[lane]], kind, verdict)
        return "Thank you."

    def export(self, visit: Visit) -> str | None:
        """A file with the chat."""
        if not visit.lanes:
            return None
        path = Path(tempfile.mkdtemp()) / "chat.json"
        visit.lanes[0].transcript.save(path, visit.lanes[0].model)
        return str(path)

    def load(self, visit: Visit, path: str, *models: str) -> list[Any]:
        """Go on with a chat from a file."""
        lane = Lane(models[0])
        try:
            lane.transcript.load(Path(path))
        except (ChatError, OSError, UnicodeDecodeError) as error:
            return self._show(visit, "", str(error).replace(path, Path(path).name))
        visit.lanes = [lane]
        return self._show(visit, "", f"{len(lane.transcript.messages)} messages.")

    def _prepare(self, visit: Visit, models: Sequence[str]) -> None:
        if not visit.lanes:
            chosen = random.sample(self._asking.names, 2) if self.mode == "battle" else list(models)
            visit.lanes = [Lane(name) for name in chosen]
        elif self.mode != "battle":
            for lane, name in zip(visit.lanes, models, strict=True):
                lane.model = name

    async def _answer(self, visit: Visit, sampling: Sampling) -> AsyncGenerator[list[Any], None]:
        """Ask all lanes at once; tell what is new as it comes. What was said so far stays, whatever ends it."""
        growing = [""] * len(visit.lanes)
        notes = [""] * len(visit.lanes)
        queue: asyncio.Queue[tuple[int, Said | AskError | None]] = asyncio.Queue()
        tasks = [asyncio.create_task(self._ask(number, visit, sampling, queue)) for number in range(len(visit.lanes))]
        num_left = len(tasks)
        try:
            yield self._show(visit, "", "…", growing)
            while num_left:
                number, said = await queue.get()
                if isinstance(said, Said):
                    growing[number], notes[number] = said.text, said.note
                elif said is not None:
                    notes[number] = str(said)
                num_left -= not isinstance(said, Said)
                yield self._show(visit, "", self._notes(visit, notes), growing)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for lane, text in zip(visit.lanes, growing, strict=True):
                if text:
                    lane.transcript.answer(text)
        yield self._show(visit, "", self._notes(visit, notes))

    async def _ask(
        self, number: int, visit: Visit, sampling: Sampling, queue: "asyncio.Queue[tuple[int, Said | AskError | None]]"
    ) -> None:
        lane, visitor = visit.lanes[number], Visitor(visit.key_name, visit.session)
        try:
            async with aclosing(self._asking.reply(lane.model, lane.transcript.sent, sampling, visitor)) as answer:
                async for said in answer:
                    await queue.put((number, said))
            await queue.put((number, None))
        except AskError as error:
            await queue.put((number, error))

    def _notes(self, visit: Visit, notes: Sequence[str]) -> str:
        names = [f"{side}: " for side in "AB"] if self.num_lanes == 2 else [""]
        return " ".join(f"{name}{note}" for name, note in zip(names, notes, strict=True) if note)

    def _show(self, visit: Visit, text: str, note: str, growing: Sequence[str] | None = None) -> list[Any]:
        """The visit, the field, the line below, and the chats."""
        chats: list[Any] = [
            lane.shown(None if growing is None else growing[number]) for number, lane in enumerate(visit.lanes)
        ]
        return [visit, text, note, *(chats or [[] for _ in range(self.num_lanes)])]

    def _note(self, visit: Visit, lanes: Sequence[Lane], kind: Kind, verdict: str) -> None:
        assert self._votes is not None
        chats = tuple(tuple(lane.transcript.messages) for lane in lanes) if self._settings.keeps_texts else ()
        turns = sum(message["role"] == "user" for message in lanes[0].transcript.messages)
        fields = {"kind": kind, "verdict": verdict, "num_turns": turns, "session": visit.session, "chats": chats}
        self._votes.add(Vote.model_validate({**fields, "models": tuple(lane.model for lane in lanes)}))
