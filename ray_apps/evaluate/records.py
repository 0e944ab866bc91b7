"""What an evaluation leaves behind, in files of JSON lines that only grow.

DIR/questions.jsonl           what is asked
DIR/answers/MODEL.jsonl       one line per question, choice and turn
DIR/verdicts/JUDGE.jsonl      one line per judgement
DIR/failures.jsonl            calls that came to nothing: never an answer, never a verdict
DIR/prompts/NAME-DIGEST.txt   the judge's prompts as they were
DIR/report.html …             what it comes to
"""

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep.errors import EvalError
from data_prep.storage import write_text
from ray_apps.evaluate.questions import Question, load_questions, said
from ray_apps.lines import append_line, read_lines

Outcome = Literal["a", "b", "tie"]
Step = Literal["answers", "judge"]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    question_id: str
    category: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Answer(_Line):
    """What a model answered to one turn of a question.

    `choice`: which of several; like `turn` counted from 0. `asked`: digest of the question and of how it was asked.
    `finish_reason`: `stop`, or `length` for one that was cut at `max_tokens`.
    """

    model: str
    choice: int = 0
    turn: int = 0
    text: str
    finish_reason: str
    temperature: float
    max_tokens: int
    asked: str


class Verdict(_Line):
    """One judgement of one judge.

    `kind` `pair`: `models` are a and b, of which `first` stood first; `outcome` is in terms of a and b.
    `kind` `single`: `models` is the one, and `score` 1 to 10. `prompt`: name and digest. `judged`: digest of the
    answers. `repeat`: which of several askings of the same. `attempts`: how often it was asked until it was in form.
    """

    judge: str
    kind: Literal["pair", "single"]
    models: tuple[str, ...]
    choice: int = 0
    first: str = ""
    outcome: Outcome | None = None
    score: int | None = None
    prompt: str
    judged: str
    repeat: int = 0
    attempts: int = 1
    text: str

    @property
    def about(self) -> str:
        """What a failure of this judgement is about."""
        return judgement(self.question_id, self.choice, self.models, self.first, self.repeat)


class Failure(BaseModel):
    """A call that came to nothing. `in_form`: whether it was answered, but by no verdict."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: Step
    model: str
    about: str
    reason: str
    in_form: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))


Record = TypeVar("Record", Answer, Verdict, Failure)


class Evaluation:
    """The files of one evaluation in `directory`, which is made."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        for name in ("answers", "verdicts", "prompts"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def alone(self, step: Step) -> Iterator[None]:
        """Within the block nobody else does this step here.

        Raises:
            EvalError: somebody does.
        """
        with (self.directory / f".{step}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise EvalError(f"{self.directory}: another process is at it ({step}); wait for it") from None
            yield

    def keep_questions(self, questions: Sequence[Question]) -> None:
        """Note what is asked.

        Raises:
            EvalError: it was something else before.
        """
        path = self.directory / "questions.jsonl"
        wanted = "".join(f"{question.model_dump_json()}\n" for question in questions)
        if path.exists() and path.read_text() != wanted:
            raise EvalError(f"{path}: other questions were asked here; take another directory, or --fresh")
        write_text(path, wanted)

    def questions(self) -> list[Question]:
        """What was asked.

        Raises:
            EvalError: nothing was.
        """
        path = self.directory / "questions.jsonl"
        if not path.exists():
            raise EvalError(f"{self.directory}: nothing was asked here yet; see `vicuna eval answers`")
        return load_questions(str(path))

    def add(self, record: Answer | Verdict | Failure) -> None:
        """Write a record, and flush it to the disk."""
        append_line(self._path_of(record), record.model_dump_json())

    def answers(self, model: str | None = None) -> list[Answer]:
        """Those of `model`, or of all. Raises EvalError, naming the line, where a record is none."""
        return [*_read("answers", self.directory, Answer, model)]

    def verdicts(self, judge: str | None = None) -> list[Verdict]:
        """Those of `judge`, or of all. Raises as `answers`."""
        return [*_read("verdicts", self.directory, Verdict, judge)]

    def failures(self) -> list[Failure]:
        """All of them, those that were made good since too. Raises as `answers`."""
        path = self.directory / "failures.jsonl"
        return [_parse(content, where, Failure) for where, content in read_lines(path)]

    def conversations(self) -> dict[tuple[str, str, int], tuple[str, ...]]:
        """By model, question and choice what was answered to all turns; what is not whole is left out."""
        turns: dict[tuple[str, str, int], dict[int, str]] = {}
        for answer in self.answers():
            turns.setdefault((answer.model, answer.question_id, answer.choice), {})[answer.turn] = answer.text
        lengths = {question.question_id: len(question.turns) for question in self.questions()}
        return {
            key: tuple(found[turn] for turn in range(len(found)))
            for key, found in turns.items()
            if found.keys() == set(range(lengths.get(key[1], 0)))
        }

    def models(self) -> list[str]:
        """Who has answered, in the order of their names."""
        return sorted({answer.model for answer in self.answers()})

    def keep_prompt(self, name: str, text: str) -> str:
        """Note a prompt as it is; what verdicts call it."""
        called = f"{name}-{digest(text)}"
        write_text(self.directory / "prompts" / f"{called}.txt", text)
        return called

    def _path_of(self, record: Answer | Verdict | Failure) -> Path:
        match record:
            case Answer():
                return self.directory / "answers" / f"{file_name(record.model)}.jsonl"
            case Verdict():
                return self.directory / "verdicts" / f"{file_name(record.judge)}.jsonl"
        return self.directory / "failures.jsonl"


def _read(folder: str, directory: Path, kind: type[Record], name: str | None) -> Iterator[Record]:
    wanted = "*" if name is None else file_name(name)
    for path in sorted((directory / folder).glob(f"{wanted}.jsonl")):
        for where, content in read_lines(path):
            yield _parse(content, where, kind)


def _parse(content: Any, where: str, kind: type[Record]) -> Record:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise EvalError(f"{where}: {said(error)}") from None


def judgement(question_id: str, choice: int, models: Sequence[str], first: str, repeat: int) -> str:
    """What a judgement is called where it is told of."""
    order = f", {first} first" if len(models) > 1 else ""
    return f"question {question_id}, choice {choice}, {' against '.join(models)}{order}, repeat {repeat}"


def digest(*parts: object) -> str:
    """Twelve hexadecimal digits of SHA-256 that tell them from others."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:12]


def file_name(model: str) -> str:
    """A name for the file of a model: others' signs are replaced, and then a digest tells it from its like."""
    plain = re.sub(r"[^\w.-]", "_", model)
    return plain if plain == model else f"{plain}-{digest(model)}"
