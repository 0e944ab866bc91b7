"""`GET /v1/models`."""

from typing import Literal

from pydantic import BaseModel

from ray_apps.serve.jobs import ModelState


class ModelCard(BaseModel):
    """A name that a model answers to. `root`: the model's own name. `parent`: of an adapter, its base.

    `state`: whether it can be asked now, as `ModelState` has it.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vicuna-ray"
    root: str
    parent: str | None = None
    state: ModelState


class ModelList(BaseModel):
    """Every name."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
