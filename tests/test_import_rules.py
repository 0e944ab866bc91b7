"""The architecture as a test: who may import whom, and where ray and torch may appear."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"train", "spot", "weights", "serve", "chat", "evaluate", "doctor"}
MAY_IMPORT_RAY = {
    "data_prep.pipeline",
    "ray_apps.local_ray",
    "ray_apps.doctor.cluster",
    "ray_apps.engine.sharding",
    "ray_apps.train.worker",
    "ray_apps.train.launch",
    "ray_apps.serve.replica",
    "ray_apps.serve.ingress",
    "ray_apps.serve.census",
    "ray_apps.serve.replicas",
    "ray_apps.serve.replica_router",
    "ray_apps.serve.app",
    "ray_apps.serve.run",
    "ray_apps.spot.watcher",
    "ray_apps.spot.launcher",
    "ray_apps.spot.provider",
}
NO_TORCH = ("data_prep", "ray_apps.serve.protocol", "ray_apps.evaluate", "ray_apps.spot", "ray_apps.run_dir")
SEES_EVERY_ROOM = {"ray_apps.cli", "ray_apps.demo", "ray_apps.stages", "ray_apps.spot_job"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in ("data_prep", "ray_apps"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), ast.parse(path.read_text())


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who imports whom"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_under(module: str, prefixes: tuple[str, ...] | set[str]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "ray_apps" and len(parts) > 1 and parts[1] in ROOMS else None


def violations(module: str, tree: ast.AST) -> Iterator[str]:
    for name in imports(tree):
        if module.split(".")[0] == "data_prep" and name.split(".")[0] == "ray_apps":
            yield f"{module} imports {name}: data_prep knows nothing of ray_apps"
        if room(name) and room(name) != room(module) and not owns_section(module, name):
            yield f"{module} imports {name}: rooms never import each other, the floor never imports a room"
        if name.split(".")[0] == "ray" and not is_under(module, MAY_IMPORT_RAY | {"ray_apps.serve.web"}):
            yield f"{module} imports {name}: ray stays in its adapters"
        if name.split(".")[0] == "torch" and is_under(module, NO_TORCH):
            yield f"{module} imports {name}: torch does not belong here"


def owns_section(module: str, name: str) -> bool:
    """`recipe` composes the rooms' settings, `cli` and `demo` compose the rooms."""
    return module in SEES_EVERY_ROOM or (module == "ray_apps.recipe" and ".config" in name)


def test_imports_follow_the_architecture() -> None:
    found = [violation for module, tree in modules() for violation in violations(module, tree)]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("data_prep.pack", "from ray_apps import recipe"),
        ("data_prep.pack", "import ray"),
        ("data_prep.pack", "from torch import nn"),
        ("ray_apps.train.loop", "import ray.train"),
        ("ray_apps.serve.app", "from ray_apps.train import loop"),
        ("ray_apps.model_dir", "from ray_apps.serve.config import ServeArgs"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert list(violations(module, ast.parse(source)))


def test_the_command_line_loads_neither_torch_nor_ray() -> None:
    code = "import ray_apps.cli, sys; print(sorted({'torch', 'ray', 'transformers', 'pydantic'} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert printed.stdout.strip() == "[]"
