"""Questions: our own, and those of files in the forms of FastChat's `question.jsonl` and of MT-bench."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep.errors import EvalError

SETS = Path(__file__).parent / "questions"
"""`english`: 80 questions of one turn in the categories of Vicuna's published evaluation; `chinese`: two turns each."""
TEMPERATURES = {
    **dict.fromkeys(("writing", "roleplay", "generic", "counterfactual"), 0.7),
    **dict.fromkeys(("knowledge", "common-sense", "fermi", "stem", "humanities"), 0.1),
    **dict.fromkeys(("coding", "maths", "math", "reasoning", "extraction"), 0.0),
}
"""At which a category is answered (Zheng et al. 2023, section 3, where it has them). Others: 0.7."""


class Question(BaseModel):
    """What is asked, in one or several turns. `references`: a checked answer to each turn, or none."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    question_id: str = Field(min_length=1)
    category: str = Field(min_length=1)
    turns: tuple[str, ...] = Field(min_length=1)
    references: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _known_forms(cls, values: Any) -> Any:
        """FastChat has `text` instead of `turns`, MT-bench `reference`; both have numbers as ids."""
        if not isinstance(values, dict):
            raise ValueError("expected an object")
        read = dict(values)
        if "turns" not in read and isinstance(read.get("text"), str):
            read["turns"] = [read["text"]]
        if "references" not in read and read.get("reference") is not None:
            read["references"] = read["reference"]
        if isinstance(read.get("question_id"), int):
            read["question_id"] = str(read["question_id"])
        return read

    @model_validator(mode="after")
    def _is_whole(self) -> "Question":
        if not all(turn.strip() for turn in self.turns):
            raise ValueError("turns: one is empty")
        if self.references and len(self.references) != len(self.turns):
            raise ValueError(f"references: {len(self.references)} for {len(self.turns)} turns; expected one for each")
        return self


def load_questions(name: str, *, references: Path | None = None, per_category: int | None = None) -> list[Question]:
    """The questions of a set that comes along, or of a file, in its order; of each category the first `per_category`.

    `references`: MT-bench's file of reference answers, which go to the questions of the same id.

    Raises:
        EvalError: there is no such set or file, a line is no question, or an id is there twice; naming file and line.
    """
    path = Path(name)
    if not path.suffix and (SETS / f"{name}.jsonl").is_file():
        path = SETS / f"{name}.jsonl"
    questions = [_question(content, where) for where, content in _lines(path)]
    if not questions:
        raise EvalError(f"{path}: it holds no questions")
    twice = [name for name, count in Counter(question.question_id for question in questions).items() if count > 1]
    if twice:
        raise EvalError(f"{path}: question_id {twice[0]!r} is there twice; each needs one of its own")
    if references:
        questions = _with_references(questions, references)
    return questions if per_category is None else _first(questions, per_category)


def _first(questions: Sequence[Question], per_category: int) -> list[Question]:
    seen: Counter[str] = Counter()
    kept = []
    for question in questions:
        seen[question.category] += 1
        if seen[question.category] <= per_category:
            kept.append(question)
    return kept


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(file.stem for file in SETS.glob("*.jsonl")))
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise EvalError(f"questions: {path}: {reason}; valid: {known}, or a file of JSON lines") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            yield where, json.loads(line)
        except ValueError as error:
            raise EvalError(f"{where}: it is no JSON: {error}") from None


def _question(content: Any, where: str) -> Question:
    try:
        return Question.model_validate(content)
    except ValidationError as error:
        raise EvalError(f"{where}: {said(error)}") from None


def said(error: ValidationError) -> str:
    """The first thing that is wrong: its field, and what would be valid."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field + ': ' if field else ''}{first['msg'].removeprefix('Value error, ')}"


def _with_references(questions: Sequence[Question], path: Path) -> list[Question]:
    found: dict[str, Any] = {}
    for where, content in _lines(path):
        try:
            found[str(content["question_id"])] = tuple(content["choices"][0]["turns"])
        except (KeyError, TypeError, IndexError):
            raise EvalError(f"{where}: expected question_id and choices with turns, as MT-bench has them") from None
    given = [question.model_dump() | {"references": found.get(question.question_id, ())} for question in questions]
    return [_question(content, f"{path}: question_id {content['question_id']!r}") for content in given]
