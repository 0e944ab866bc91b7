"""A recipe: one YAML file with optional sections, each owned by its room, each field open to `section.key=value`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from data_prep.config import DataConfig, Settings
from data_prep.errors import ConfigError
from ray_apps.config import apply_overrides, load_yaml
from ray_apps.evaluate.config import EvalConfig
from ray_apps.spot.config import SpotConfig
from ray_apps.train.config import TrainConfig

Section = TypeVar("Section", DataConfig, TrainConfig, SpotConfig, EvalConfig)

RECIPES = Path(__file__).parent / "recipes"


class Recipe(Settings):
    """What a recipe may hold."""

    data: DataConfig | None = None
    train: TrainConfig | None = None
    spot: SpotConfig | None = None
    eval: EvalConfig | None = None


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path to a YAML file, or the name of one that comes along.

    Raises:
        ConfigError: there is no such recipe; the message lists those that come along.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise ConfigError(f"recipe {name!r}: no such recipe; valid: a path to a YAML file, or one of {known}")
    return path


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe and apply overrides; every section is checked, whichever is used.

    Raises:
        ConfigError: one line per wrong field.
    """
    return Recipe.parse(apply_overrides(load_yaml(find_recipe(name)), overrides))


def data_section(recipe: Recipe, name: str) -> DataConfig:
    """The `data` section of the recipe called `name`; ConfigError if it has none."""
    return _present(recipe.data, "data", name)


def train_section(recipe: Recipe, name: str) -> TrainConfig:
    """The `train` section of the recipe called `name`; ConfigError if it has none."""
    return _present(recipe.train, "train", name)


def spot_section(recipe: Recipe, name: str) -> SpotConfig:
    """The `spot` section of the recipe called `name`; ConfigError if it has none."""
    return _present(recipe.spot, "spot", name)


def eval_section(recipe: Recipe, name: str) -> EvalConfig:
    """The `eval` section of the recipe called `name`; ConfigError if it has none."""
    return _present(recipe.eval, "eval", name)


def _present(section: Section | None, kind: str, name: str) -> Section:
    if section is None:
        raise ConfigError(f"recipe {name!r}: it has no section {kind!r}")
    return section
