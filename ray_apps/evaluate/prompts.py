"""What a judge is told, from files, and how its verdict is read. What is not in form is an error, never a verdict."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from data_prep.errors import EvalError
from ray_apps.evaluate.client import Message
from ray_apps.evaluate.questions import Question, said

Kind = Literal["pair", "single"]
Form = Literal["schema", "loose_schema", "text"]
FORMS: tuple[Form, ...] = ("schema", "loose_schema", "text")
"""How a verdict is asked for: by a JSON schema, by one without what not everyone knows, or in words alone."""
PROMPTS = Path(__file__).parent / "prompts"
EXPLANATION, SHORTEST, AROUND = 1200, 40, 60
"""Characters of reasons at most and at least, and tokens of what stands around them: a small judge, too, is to come to
its verdict."""


class NotInFormError(Exception):
    """There is no verdict in what the judge said, or more than one."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    system: str
    reference: str
    user: str
    json_: str
    text: str
    again: str


@dataclass(frozen=True)
class Prompt:
    """The prompt of a kind of judgement; `source`: its file's text, `version` and all."""

    kind: Kind
    source: str
    _file: _File

    @property
    def name(self) -> str:
        """Kind and version."""
        return f"{self.kind}-{self._file.version}"

    def messages(self, question: Question, conversations: Sequence[Sequence[str]], form: Form) -> list[Message]:
        """What is sent: `conversations` are the answers to the question's turns, of one assistant or two."""
        references = "".join(
            f"{self._file.reference.replace('{reference}', text)}\n\n" for text in _by_turn(question.references)
        )
        told = [_rendered(question, answers) for answers in conversations]
        parts = {"references": references, "form": self._form(form), "first": told[0], "second": told[-1]}
        user = re.sub(r"\{(\w+)\}", lambda found: parts.get(found[1], found[0]), self._file.user)
        return [{"role": "system", "content": self._file.system}, {"role": "user", "content": user}]

    def again(self, form: Form) -> Message:
        """What is said where there was no verdict in form."""
        return {"role": "user", "content": self._file.again.replace("{form}", self._form(form))}

    def fields(self, form: Form, max_tokens: int) -> dict[str, Any]:
        """What the endpoint is to see to; reasons leave room for the verdict in an answer of `max_tokens`."""
        if form == "text":
            return {}
        explanation: dict[str, Any] = {"type": "string"}
        if form == "schema":
            explanation["maxLength"] = max(SHORTEST, min(EXPLANATION, max_tokens - AROUND))
        verdict = {"type": "string", "enum": ["A", "B", "tie"]} if self.kind == "pair" else {"enum": [*range(1, 11)]}
        last = "verdict" if self.kind == "pair" else "score"
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {"explanation": explanation, last: verdict},
            "required": ["explanation", last],
            "additionalProperties": False,
        }
        if form == "schema":
            schema["x-guidance"] = {"whitespace_flexible": False}  # small models write spaces for ever
        wrapped = {"name": last, "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": wrapped}}

    def read(self, text: str, form: Form) -> str | int:
        """`A`, `B` or `tie`, or a score.

        Raises:
            NotInFormError: there is none, or more than one.
        """
        if self.kind == "pair":
            return _pair(_field(text, "verdict") if form != "text" else _line(text, r"verdict", r"A|B|tie"))
        return _score(_field(text, "score") if form != "text" else _line(text, r"score", r"\d+"))

    def _form(self, form: Form) -> str:
        return self._file.text if form == "text" else self._file.json_


def load_prompt(kind: Kind, directory: Path | None = None) -> Prompt:
    """The prompt that comes along, or the one in `directory`.

    Raises:
        EvalError: there is none, or it lacks something.
    """
    path = (directory or PROMPTS) / f"{kind}.yaml"
    try:
        source = path.read_text()
        content = yaml.safe_load(source)
        read = {("json_" if name == "json" else name): value for name, value in dict(content).items()}
        return Prompt(kind, source, _File.model_validate(read))
    except OSError as error:
        raise EvalError(f"prompts: {path}: {error.strerror}") from None
    except ValidationError as error:
        raise EvalError(f"prompts: {path}: {said(error)}") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise EvalError(f"prompts: {path}: {error}") from None


def _rendered(question: Question, answers: Sequence[str]) -> str:
    turns = zip(question.turns, answers, strict=True)
    return "\n\n".join(f"User: {asked.strip()}\n\nAssistant: {answer.strip()}" for asked, answer in turns)


def _by_turn(references: Sequence[str]) -> list[str]:
    if not references:
        return []
    numbered = [f"Turn {number}: {text}" for number, text in enumerate(references, start=1)]
    return ["\n\n".join(numbered) if len(numbered) > 1 else references[0]]


def _field(text: str, name: str) -> Any:
    bare = re.fullmatch(r"\s*(?:```(?:json)?\s*)?(\{.*\})\s*(?:```)?\s*", text, re.DOTALL)
    try:
        content = json.loads(bare[1]) if bare else None
    except ValueError:
        content = None
    if not isinstance(content, dict) or name not in content:
        raise NotInFormError(f"there is no JSON object with {name!r}: {_end_of(text)}")
    return content[name]


def _line(text: str, name: str, values: str) -> str:
    """What stands after `name` on a line of its own, which must be the last, and say what others of its kind say."""
    marks = r"[\s*_#`>\"'\[\]()]*"
    lines = [line for line in text.splitlines() if line.strip()]
    pattern = re.compile(rf"{marks}{name}{marks}:{marks}({values}){marks}\.?{marks}", re.IGNORECASE)
    found = [match[1] for line in lines if (match := pattern.fullmatch(line))]
    if not found or not pattern.fullmatch(lines[-1]):
        raise NotInFormError(f"it does not end with a line '{name.capitalize()}: …': {_end_of(text)}")
    if len({one.lower() for one in found}) > 1:
        raise NotInFormError(f"it says {' and '.join(found)}")
    return found[-1]


def _pair(value: Any) -> str:
    known = {"a": "A", "b": "B", "tie": "tie"}
    if not isinstance(value, str) or value.lower() not in known:
        raise NotInFormError(f"verdict {value!r}; valid: A, B, tie")
    return known[value.lower()]


def _score(value: Any) -> int:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    number = value if is_number else int(value) if isinstance(value, str) and value.isdigit() else None
    if number is None or not 1 <= number <= 10:
        raise NotInFormError(f"score {value!r}; valid: 1 to 10")
    return int(number)


def _end_of(text: str) -> str:
    return repr(text.strip()[-80:])
