"""A chat from its first question to its end."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from data_prep.errors import ChatError
from ray_apps.chat.commands import UnknownCommandError, help_text, parse
from ray_apps.chat.styles import Style
from ray_apps.chat.talker import Ending, Sampling, Talker, TooLongError
from ray_apps.transcript import Transcript


class Reader(Protocol):
    """Where the person's words come from."""

    def read(self, *, edited: str = "") -> str | None:
        """The next message or command, `edited` to begin with; None at the end."""
        ...


class Session:
    """What is said, by whom, and what is done about it."""

    def __init__(self, talker: Talker, style: Style, sampling: Sampling, system: str | None = None) -> None:
        self._talker = talker
        self._style = style
        self._sampling = sampling
        self._transcript = Transcript(system)
        self._stats: dict[str, Any] = {}
        self.has_failed = False
        """Whether anything went wrong."""

    def run(self, reader: Reader) -> None:
        """Talk until the person leaves."""
        self._style.begin(self._talker.name)
        edited, replaces = "", False
        while True:
            line = reader.read(edited=edited)
            edited = ""
            if line is None:
                return
            if not line.strip():
                continue
            try:
                name, argument = parse(line) or ("", line)
                if name == "exit":
                    return
                replaced, replaces = replaces, False
                if name == "edit" and not argument:
                    edited = self._transcript.last_question or ""
                    replaces = bool(edited)
                    self._style.notice("change it and send it" if edited else "nothing has been asked yet")
                elif name:
                    self._obey(name, argument)
                else:
                    if replaced:
                        self._transcript.remove()
                    self._ask(line.removeprefix("/") if line.startswith("//") else line)
            except BrokenPipeError:  # nobody reads on
                return
            except (ChatError, UnknownCommandError, OSError) as error:
                self._fail(str(error))

    def _obey(self, name: str, argument: str) -> None:
        transcript, say = self._transcript, self._style.notice
        match name:
            case "help":
                say(help_text())
            case "reset":
                transcript.reset()
                say("a new chat")
            case "remove":
                say("taken back" if transcript.remove() else "there is nothing to take back")
            case "regenerate" if transcript.last_question is not None:
                self._regenerate()
            case "edit" if argument and transcript.remove():
                self._ask(argument)
            case "regenerate" | "edit":
                say("nothing has been asked yet")
            case "system":
                transcript.system = None if argument == "none" else argument or transcript.system
                say(f"system prompt: {transcript.system or 'none'}")
            case "save":
                transcript.save(_path(argument, to_be_written=True), self._talker.name)
                say(f"{argument}: {len(transcript.messages)} messages")
            case "load":
                transcript.load(_path(argument))
                say(f"{argument}: {len(transcript.messages)} messages")
            case "stats":
                say(_told(self._stats))

    def _ask(self, text: str) -> None:
        self._transcript.ask(text)
        self._answer()

    def _regenerate(self) -> None:
        """Answer the last question once more; without another answer the one that was there stays."""
        last = self._transcript.messages[-1]
        self._transcript.remove_answer()
        try:
            self._answer()
        finally:
            if last["role"] == "assistant" and self._transcript.messages[-1]["role"] == "user":
                self._transcript.answer(last["content"])

    def _answer(self) -> None:
        """Answer the last question; of a chat that is too long without its oldest turns."""
        left_out = self._transcript.num_left_out
        while True:
            try:
                self._reply()
                return
            except TooLongError as error:
                if not self._transcript.forget_oldest():
                    self._transcript.num_left_out = left_out  # the chat is not what is too long
                    raise
                self._style.notice(f"the oldest question and its answer are left out from here on: {error}")

    def _reply(self) -> None:
        pieces: list[str] = []
        ending: Ending | None = None
        started, first = time.monotonic(), None
        is_open = is_stopped = False
        answer = self._talker.reply(self._transcript.sent, self._sampling)
        try:
            for piece in answer:
                first = first or time.monotonic()
                if not is_open:
                    self._style.open_answer(self._talker.name)
                    is_open = True
                if isinstance(piece, Ending):
                    ending = piece
                else:
                    pieces.append(piece)
                    self._style.piece(piece)
        except KeyboardInterrupt:
            is_stopped = True
        finally:
            _close(answer)
            self._stats = _stats(started, first, time.monotonic(), ending)
            if is_open:
                self._style.close_answer(ending, self._stats)
            if pieces or (ending is not None and ending.finish_reason != "content_filter"):
                self._transcript.answer("".join(pieces))
        if is_stopped:
            self._style.notice("stopped")
        if ending is not None and ending.finish_reason == "content_filter":
            self._style.notice("the answer was stopped by moderation")
        elif ending is not None and ending.finish_reason == "length":
            self._style.notice("the answer was cut at its longest; --max-new-tokens allows more")

    def _fail(self, text: str) -> None:
        self.has_failed = True
        self._style.error(text)


def _path(text: str, *, to_be_written: bool = False) -> Path:
    """The file that a person names.

    Raises:
        ChatError: there can be no such file.
    """
    try:
        path = Path(text).expanduser()
        is_directory = path.is_dir()
    except (RuntimeError, ValueError) as error:
        raise ChatError(f"{text!r}: {error}") from None
    if "\0" in text:
        raise ChatError(f"{text!r}: no name of a file has such characters")
    if is_directory or (to_be_written and not path.name):
        raise ChatError(f"{text}: is a directory; expected a file")
    return path


def _close(answer: Iterator[Any]) -> None:
    close = getattr(answer, "close", None)
    if close is not None:
        close()


def _stats(started: float, first: float | None, ended: float, ending: Ending | None) -> dict[str, Any]:
    """Tokens; seconds until the first piece; tokens per second from there on."""
    num_tokens = ending.num_answer_tokens if ending else None
    seconds = ended - (first or ended)
    rate = round((num_tokens - 1) / seconds, 1) if num_tokens and num_tokens > 1 and seconds > 0 else None
    return {
        "prompt_tokens": ending.num_prompt_tokens if ending else None,
        "completion_tokens": num_tokens,
        "ttft_s": None if first is None else round(first - started, 3),
        "tokens_per_s": rate,
    }


def _told(stats: dict[str, Any]) -> str:
    if not stats:
        return "nothing has been answered yet"
    return ", ".join(f"{name} {'unknown' if value is None else value}" for name, value in stats.items())
