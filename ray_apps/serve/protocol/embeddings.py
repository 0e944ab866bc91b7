"""`POST /v1/embeddings`."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from ray_apps.serve.protocol.completion_request import Prompts
from ray_apps.serve.protocol.fields import Wire


class EmbeddingRequest(Wire):
    """What a client asks for. `dimensions` may only be those that the model has."""

    input: Prompts
    model: str
    dimensions: int | None = Field(None, ge=1)
    encoding_format: Literal["float", "base64"] | None = None
    user: Any = None


class Embedding(BaseModel):
    """The vector of one text: numbers, or their little-endian float32 bytes in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
