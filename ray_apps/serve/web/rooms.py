"""What can be done on the page, without the page: what is said is kept here, in lanes, one for each model."""

import asyncio
import json
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
from ray_apps.serve.web.markdown import harmless, plain
from ray_apps.transcript import Transcript
from ray_apps.votes import Kind, Vote, VoteFile

Mode = Literal["chat", "side_by_side", "battle"]
THUMBS: dict[object, tuple[Kind, str]] = {True: ("thumb", "up"), False: ("thumb", "down"), "Flag": ("flag", "flag")}
"""What a thumb, or a flag, of gradio's says."""
UNCHANGED: dict[str, str] = {"__type__": "update"}
"""What gradio takes for a component that stays as it is."""


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
    """One tab of one visitor.

    `is_voted`: the models of a battle are known, so that it is over. `num_judged`: messages there were at the last
    vote. `rated`: what was thought of single answers. `round`: goes up with what makes an answer under way pointless.

    No dataclass: gradio would make a dict of it.
    """

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.session = uuid.uuid4().hex
        self.key_name = ANYBODY
        self.is_voted = False
        self.is_answering = False
        self.num_judged = 0
        self.rated: dict[tuple[int, int], str] = {}
        self.round = 0

    def begin_anew(self, lanes: list["Lane"]) -> None:
        """Go on with other chats."""
        self.lanes, self.is_voted, self.num_judged, self.rated = lanes, False, 0, {}
        self.round += 1

    @property
    def num_messages(self) -> int:
        """Of all lanes."""
        return sum(len(lane.transcript.messages) for lane in self.lanes)


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
            yield self._show(visit, note="")
            return
        if refusal := self._refusal(visit, text, system):
            yield self._show(visit, text, refusal)  # the text stays in the field
            return
        self._prepare(visit, models)
        for lane in visit.lanes:
            lane.transcript.system = (system or "").strip() or None
            lane.transcript.ask(text)
        async with aclosing(self._answer(visit, Sampling(temperature, top_p, int(max_tokens)), "")) as answer:
            async for shown in answer:
                yield shown

    async def regenerate(
        self, visit: Visit, system: str, temperature: float, top_p: float, max_tokens: float, *models: str
    ) -> AsyncGenerator[list[Any], None]:
        """Ask the last question once more. An answer that was there stays where there is no other."""
        refusal = self._refusal(visit, "", system) if visit.lanes else "There is nothing to answer again."
        if refusal:
            yield self._show(visit, note=refusal)
            return
        self._prepare(visit, models)
        before = [(lane, lane.transcript.messages[-1:]) for lane in visit.lanes]
        for lane in visit.lanes:
            lane.transcript.remove_answer()
            lane.transcript.system = (system or "").strip() or None
        try:
            async with aclosing(self._answer(visit, Sampling(temperature, top_p, int(max_tokens)))) as answer:
                async for shown in answer:
                    yield shown
        finally:
            for lane, last in before:
                said = lane.transcript.messages
                if said and said[-1]["role"] == "user" and last and last[0]["role"] == "assistant":
                    lane.transcript.answer(last[0]["content"])
        yield self._show(visit, note=shown[2])

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
        lane: int = 0,
    ) -> AsyncGenerator[list[Any], None]:
        """Ask something else in place of message number `place` of a lane; what followed it is gone."""
        text = plain(text)
        refusal = self._refusal(visit, text, system) if text.strip() else "A question cannot be empty."
        if refusal:
            yield self._show(visit, note=refusal)
            return
        later = visit.lanes[lane].transcript.messages[place:] if visit.lanes else []
        for _ in range(sum(message["role"] == "user" for message in later)):
            for one in visit.lanes:
                one.transcript.remove()
        sent = self.send(visit, text, system, temperature, top_p, max_tokens, *models)
        async with aclosing(sent) as answer:
            async for shown in answer:
                yield shown

    def undo(self, visit: Visit) -> list[Any]:
        """Take the last question back into the field where it was typed."""
        question = visit.lanes[0].transcript.last_question or "" if visit.lanes else ""
        visit.round += 1
        for lane in visit.lanes:
            lane.transcript.remove()
        return self._show(visit, question, "")

    def clear(self, visit: Visit) -> list[Any]:
        """Begin anew."""
        visit.begin_anew([])
        return self._show(visit, note="")

    def stopped(self, visit: Visit) -> list[Any]:
        """After an answer was stopped: what there is of it."""
        visit.round += 1
        return self._show(visit, note="Stopped.")

    def vote(self, visit: Visit, verdict: str) -> list[Any]:
        """Note which answer is better; in a battle the names are told then."""
        ends = [lane.transcript.messages[-1:] for lane in visit.lanes]
        if self._votes is None or not ends or visit.is_voted:
            return self._show(visit, note="There is nothing to vote on.")
        if visit.is_answering or not all(end and end[0]["role"] == "assistant" for end in ends):
            return self._show(visit, note="There are not two answers to vote on yet.")
        if visit.num_judged == visit.num_messages:
            return self._show(visit, note="You have voted on these answers.")
        kind: Kind = "battle" if self.mode == "battle" else "side_by_side"
        self._note(visit, visit.lanes, kind, verdict)
        visit.is_voted, visit.num_judged = self.mode == "battle", visit.num_messages
        names = " against ".join(lane.model for lane in visit.lanes)
        return self._show(visit, note=f"Thank you. It was {names}." if visit.is_voted else "Thank you.")

    def rate(self, visit: Visit, liked: object, lane: int = 0, place: int | None = None) -> str:
        """Note a thumb or a flag for message number `place`, the last one if that is not known."""
        if self._votes is None or not visit.lanes:
            return "Opinions are not kept here."
        kind, verdict = THUMBS[liked]
        last = len(visit.lanes[lane].transcript.messages) - 1
        place = last if place is None else min(place, last)
        if visit.rated.get((lane, place)) != verdict:  # gradio tells some of them twice
            visit.rated[lane, place] = verdict
            self._note(visit, [visit.lanes[lane]], kind, verdict, place + 1)
        return "Thank you."

    def export(self, visit: Visit) -> str | None:
        """A file with the chat."""
        if not visit.lanes:
            return None
        path = Path(tempfile.mkdtemp()) / "chat.json"
        visit.lanes[0].transcript.save(path, visit.lanes[0].model)
        return str(path)

    def load(self, visit: Visit, path: str, *models: str) -> list[Any]:
        """Go on with a chat from a file; its model, where there is such a one, and its system prompt are told too."""
        lane = Lane(models[0])
        try:
            lane.transcript.load(Path(path))
            lane.shown()
        except (ChatError, OSError, UnicodeDecodeError) as error:
            note = str(error).replace(path, Path(path).name)
            return [*self._show(visit, note=note), UNCHANGED, UNCHANGED]
        saved = model_of(Path(path))
        lane.model = saved if saved in self._asking.names else lane.model
        visit.begin_anew([lane])
        shown = self._show(visit, note=f"{len(lane.transcript.messages)} messages.")
        return [*shown, lane.transcript.system or "", lane.model]

    def _refusal(self, visit: Visit, text: str, system: str) -> str | None:
        """Why nothing can be asked now."""
        if visit.is_voted:
            return "The vote is given: begin a new battle."
        if visit.is_answering:
            return "An answer is under way: stop it first."
        said = [message for lane in visit.lanes for message in lane.transcript.messages]
        given = [{"role": "system", "content": system or ""}, *said, {"role": "user", "content": text}]
        try:
            self._asking.check_lengths(given)
        except AskError as error:
            return str(error)
        return None

    def _prepare(self, visit: Visit, models: Sequence[str]) -> None:
        if not visit.lanes:
            chosen = random.sample(self._asking.names, 2) if self.mode == "battle" else list(models)
            visit.begin_anew([Lane(name) for name in chosen])
        elif self.mode != "battle":
            for lane, name in zip(visit.lanes, models, strict=True):
                lane.model = name

    async def _answer(
        self, visit: Visit, sampling: Sampling, field: object = UNCHANGED
    ) -> AsyncGenerator[list[Any], None]:
        """Ask all lanes at once; tell what is new as it comes. What was said so far stays, whatever ends it."""
        lanes, this_round = visit.lanes, visit.round
        growing, notes = [""] * len(lanes), [""] * len(lanes)
        lengths = [len(lane.transcript.messages) for lane in lanes]
        queue: asyncio.Queue[tuple[int, Said | AskError | None]] = asyncio.Queue()
        tasks = [asyncio.create_task(self._ask(number, visit, sampling, queue)) for number in range(len(lanes))]
        num_left, visit.is_answering = len(tasks), True
        try:
            yield self._show(visit, field, "…", growing)
            while num_left:
                number, said = await queue.get()
                if visit.round != this_round:
                    return
                if isinstance(said, Said):
                    growing[number], notes[number] = said.text, said.note
                elif said is not None:
                    notes[number] = str(said)
                num_left -= not isinstance(said, Said)
                yield self._show(visit, note=self._notes(notes), growing=growing)
        finally:
            visit.is_answering = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for lane, text, length in zip(lanes, growing, lengths, strict=True):
                if text and len(lane.transcript.messages) == length:  # nobody has taken the question back
                    lane.transcript.answer(text)
        yield self._show(visit, note=self._notes(notes))

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

    def _notes(self, notes: Sequence[str]) -> str:
        names = [f"{side}: " for side in "AB"] if self.num_lanes == 2 else [""]
        return " ".join(f"{name}{note}" for name, note in zip(names, notes, strict=True) if note)

    def _show(
        self, visit: Visit, field: object = UNCHANGED, note: str = "", growing: Sequence[str] | None = None
    ) -> list[Any]:
        """The visit, the field, the line below, and the chats."""
        chats: list[Any] = [
            lane.shown(None if growing is None else growing[number]) for number, lane in enumerate(visit.lanes)
        ]
        return [visit, field, note, *(chats or [[] for _ in range(self.num_lanes)])]

    def _note(self, visit: Visit, lanes: Sequence[Lane], kind: Kind, verdict: str, count: int | None = None) -> None:
        """Write a vote on the first `count` messages, or on all."""
        assert self._votes is not None
        said = [lane.transcript.messages[:count] for lane in lanes]
        chats = tuple(map(tuple, said)) if self._settings.keeps_texts else ()
        turns = sum(message["role"] == "user" for message in said[0])
        fields = {"kind": kind, "verdict": verdict, "num_turns": turns, "session": visit.session, "chats": chats}
        self._votes.add(Vote.model_validate({**fields, "models": tuple(lane.model for lane in lanes)}))


def model_of(path: Path) -> object:
    """The model that a saved chat names, if it names one."""
    try:
        return json.loads(path.read_text("utf-8")).get("model")
    except (ValueError, AttributeError, RecursionError):
        return None
