"""`POST /tokenize` and `POST /detokenize`, in the shapes of vLLM's."""

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ray_apps.serve.protocol.fields import MAX_TOKEN_IDS, Items, Text, Wire
from ray_apps.serve.protocol.messages import ChatMessage, Messages
from ray_apps.serve.protocol.tools import MAX_TOOLS, Tool


class TokenizeRequest(Wire):
    """Either a text or messages. Special tokens are put around a text unless `add_special_tokens` is false."""

    model: str | None = None
    prompt: Text | None = None
    messages: Messages | None = Field(None, validate_default=True)
    tools: Items[Tool] | None = Field(None, max_length=MAX_TOOLS)
    add_special_tokens: bool | None = None

    @field_validator("messages")
    @classmethod
    def _is_instead_of_a_text(cls, value: list[ChatMessage] | None, info: ValidationInfo) -> list[ChatMessage] | None:
        if (value is None) == (info.data.get("prompt") is None):
            raise PydanticCustomError("invalid_value", "is required without 'prompt', and not allowed with it")
        return value


class TokenizeResponse(BaseModel):
    """The ids, and the most that the model reads."""

    count: int
    max_model_len: int
    tokens: list[int]


class DetokenizeRequest(Wire):
    """Ids."""

    model: str | None = None
    tokens: Items[int] = Field(max_length=MAX_TOKEN_IDS)


class DetokenizeResponse(BaseModel):
    """Their text."""

    prompt: str
