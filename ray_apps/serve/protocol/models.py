"""`GET /v1/models`."""

from typing import Literal

from pydantic import BaseModel


class ModelCard(BaseModel):
    """One model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vicuna-ray"


class ModelList(BaseModel):
    """Every model that is served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
