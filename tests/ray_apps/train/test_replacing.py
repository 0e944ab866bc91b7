"""Nothing that this project did not write is ever replaced."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.errors import ConfigError
from data_prep.manifest import read_manifest
from ray_apps.train.checks import check_run
from ray_apps.train.config import TrainConfig
from ray_apps.train.receipt import run_receipt


@pytest.mark.parametrize("field", ["run_dir", "output"])
def test_a_directory_of_something_else_is_refused_and_kept(
    make_config: Callable[..., TrainConfig], tmp_path: Path, field: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match=rf"train\.{field}: .*mine' has no .*: it is not ours to replace"):
        check_run(make_config(**{field: str(tmp_path / "mine")}))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_the_base_is_never_the_output(make_config: Callable[..., TrainConfig], tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"model: .* is not outside of output"):
        make_config(output=str(tiny_model_dir))


def test_another_identity_of_the_same_length_is_another_run(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config()
    manifest = read_manifest(config.dataset)
    renamed = {**manifest.config, "identity": {"name": "Ada", "maker": "ACME", "count": None}}
    other = manifest.model_copy(update={"config": renamed})
    moved = manifest.model_copy(update={"config": {**manifest.config, "output": "elsewhere"}})
    assert run_receipt(config, other) != run_receipt(config, manifest)
    assert run_receipt(config, moved) == run_receipt(config, manifest)
