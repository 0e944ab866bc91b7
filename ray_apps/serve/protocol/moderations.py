"""`POST /v1/moderations`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from ray_apps.serve.protocol.fields import Text, Wire

MAX_TEXTS = 256


def _as_texts(value: Any) -> Any:
    """A text, texts, or parts of one text, as texts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        return [_text_of(part) for part in value]
    return value


def _text_of(part: dict[str, Any]) -> Any:
    if part.get("type") != "text":
        raise PydanticCustomError("invalid_value", "should hold texts: images are not understood")
    return part.get("text")


class ModerationRequest(Wire):
    """What a client asks for. There is one moderator, whatever `model` says."""

    input: Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS), BeforeValidator(_as_texts)]
    model: Any = None


class ModerationResult(BaseModel):
    """Of one text. `not_assessed`: categories of OpenAI's that the moderator knows nothing of; they are false and 0."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]
    not_assessed: list[str]


class ModerationList(BaseModel):
    """The results in the order of the texts."""

    id: str
    model: str
    results: list[ModerationResult]
