"""Which model answers to which name."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ray_apps.serve.errors import bad_request, model_not_found
from ray_apps.serve.jobs import Backend, ModelState
from ray_apps.serve.protocol.models import ModelCard


@dataclass(frozen=True)
class ServedModel:
    """A model under its name, with other names for it and the names of its adapters.

    `request_timeout_s`: how long a request to it may take.
    """

    name: str
    backend: Backend
    aliases: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    request_timeout_s: float | None = None


@dataclass(frozen=True)
class Route:
    """Where a request goes: to a model, perhaps through one of its adapters."""

    model: ServedModel
    adapter: str | None = None

    @property
    def name(self) -> str:
        """What the answer says it is from."""
        return self.adapter or self.model.name


class Router:
    """Finds models by name. The names are told apart by whoever makes it."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self.models = tuple(models)
        self._routes = {name: route for model in models for name, route in _routes(model)}
        self._created = int(time.time())

    def find(self, name: str) -> Route:
        """The model that answers to `name`.

        Raises:
            ApiError: none does.
        """
        if name not in self._routes:
            raise model_not_found(name)
        return self._routes[name]

    def find_or_only(self, name: str | None) -> Route:
        """The model that answers to `name`, which need not be given where there is one model.

        Raises:
            ApiError: there is no such model, or several.
        """
        if name is None and len(self.models) > 1:
            names = ", ".join(model.name for model in self.models)
            raise bad_request(f"model: is required; valid: {names}", param="model", code="missing_required_parameter")
        return self.find(self.models[0].name if name is None else name)

    async def card(self, name: str) -> ModelCard:
        """What is said of the model that answers to `name`.

        Raises:
            ApiError: none does.
        """
        route = self.find(name)
        return _card(name, route, self._created, await route.model.backend.state())

    async def cards(self) -> list[ModelCard]:
        """What is said of every name."""
        return await asyncio.gather(*map(self.card, self._routes))


def _routes(model: ServedModel) -> Iterator[tuple[str, Route]]:
    for name in (model.name, *model.aliases):
        yield name, Route(model)
    for name in model.adapters:
        yield name, Route(model, name)


def _card(name: str, route: Route, created: int, state: ModelState) -> ModelCard:
    """An alias names its model as `root`, an adapter its base as `parent`."""
    parent = None if route.adapter is None else route.model.name
    return ModelCard(id=name, created=created, root=route.name, parent=parent, state=state)
