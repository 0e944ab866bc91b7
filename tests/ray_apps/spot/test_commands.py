"""`vicuna spot up`, `down` and `status` before there is a machine: what is refused, who may look after a cluster."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from data_prep.errors import ConfigError, DataError, SpotError
from data_prep.manifest import MANIFEST_NAME
from ray_apps.cli import vicuna
from ray_apps.model_dir import ORIGIN
from ray_apps.recipe import load_recipe
from ray_apps.spot.launch_state import Cluster, LaunchState, held, read_state, write_state
from ray_apps.spot_job import job_recipe, put_dataset
from tests import tiny
from tests.ray_apps.spot import loopback
from tests.s3 import Bucket

ROOT = Path(__file__).parents[3]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(train: dict[str, Any] | None = None, **spot: Any) -> str:
        path = tmp_path / "recipe.yaml"
        values = {"model": "org/base", "dataset": str(tmp_path / "dataset"), "run_dir": "run", "output": "model"}
        zones = {"us-west-2": ["us-west-2a"]}
        section = {"template": str(ROOT / "cluster.yaml"), "zones": zones, "state": str(tmp_path / "spot.json")}
        path.write_text(yaml.safe_dump({"train": values | (train or {}), "spot": section | spot}))
        return str(path)

    return write


def run(*words: str) -> str:
    result = CliRunner().invoke(vicuna, ["spot", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_a_job_needs_a_store(write: Callable[..., str]) -> None:
    with pytest.raises(
        ConfigError, match=r"spot.store: is required to train; expected s3://bucket/key; else give --cl"
    ):
        run("up", write())


def test_a_model_of_this_machine_is_refused(write: Callable[..., str], tiny_model_dir: Path, bucket: Bucket) -> None:
    recipe = write({"model": str(tiny_model_dir)}, store=f"{bucket.uri}/store")
    with pytest.raises(ConfigError, match=r"train.model: '.*' is a directory of this machine; the cluster needs"):
        run("up", recipe)
    assert bucket.list_keys() == []


def test_a_dataset_that_is_nowhere(write: Callable[..., str], bucket: Bucket) -> None:
    recipe = write(store=f"{bucket.uri}/store")
    with pytest.raises(
        DataError, match=rf"is no dataset, and there is none at {bucket.uri}/store/dataset; `vicuna prep"
    ):
        run("up", recipe)


def test_the_dataset_goes_to_the_store_once(
    write: Callable[..., str], bucket: Bucket, tiny_model_dir: Path, tmp_path: Path
) -> None:
    dataset = tiny.write_dataset(tmp_path / "dataset", tiny_model_dir, template="chatml")
    recipe = write({"model": bucket.upload(tiny_model_dir, "base")}, store=f"{bucket.uri}/store")
    for _ in range(2):
        put_dataset(load_recipe(recipe), recipe)
        here = {str(path.relative_to(dataset)) for path in dataset.rglob("*") if path.is_file()}
        assert {*bucket.list_keys()} >= {f"store/dataset/{name}" for name in here}
    manifest = dataset / MANIFEST_NAME
    manifest.write_text(manifest.read_text().replace("chatml", "vicuna_v1.1"))
    with pytest.raises(DataError, match=r"is not the dataset at .*; choose another spot.store, or remove it"):
        put_dataset(load_recipe(recipe), recipe)


def test_a_dataset_of_another_tokenizer(
    write: Callable[..., str], bucket: Bucket, tiny_model_dir: Path, tmp_path: Path
) -> None:
    dataset = tiny.write_dataset(tmp_path / "dataset", tiny_model_dir, template="chatml")
    manifest = dataset / MANIFEST_NAME
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"tokenizer_fingerprint": "another"}))
    recipe = write({"model": bucket.upload(tiny_model_dir, "base")}, store=f"{bucket.uri}/store")
    with pytest.raises(DataError, match=r"was made with another tokenizer than that of"):
        put_dataset(load_recipe(recipe), recipe)
    assert not any(key.startswith("store/") for key in [*bucket.list_keys()])


def test_a_job_has_its_run_in_the_store_and_the_settings_of_the_recipe(
    write: Callable[..., str], tmp_path: Path
) -> None:
    name = write({"max_steps": 7}, store="s3://bucket/key/")
    path = tmp_path / "job.yaml"
    path.write_text(job_recipe(load_recipe(name, ["train.seed=5"]), name))
    job = load_recipe(str(path))
    assert job.train is not None
    assert job.spot is not None
    assert (job.train.run_dir, job.train.max_steps, job.train.seed) == ("s3://bucket/key/run", 7, 5)
    assert job.spot.store == "s3://bucket/key"


def test_what_is_done_is_not_done_again(write: Callable[..., str], bucket: Bucket) -> None:
    bucket.write(f"store/model/{ORIGIN}", "{}")
    assert "/store/model is there already" in run("up", write(store=f"{bucket.uri}/store"))


def test_what_a_launcher_left_that_was_killed_when_all_was_done(
    write: Callable[..., str], bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(loopback.PLACE, str(tmp_path / "cloud"))
    template = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    template["provider"] = {"type": "external", "module": "tests.ray_apps.spot.loopback.Loopback"}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(template))
    store = f"{bucket.uri}/store"
    recipe = write(store=store, template=str(tmp_path / "cluster.yaml"), name="run")
    place = ("us-west-2", "us-west-2a", "spot", 1.0, 0.0, 0.0)
    left = Cluster("run_us-west-2a", *place)  # type: ignore[arg-type]
    write_state(tmp_path / "spot.json", LaunchState(store=store, cluster=left, first_start=0.0))
    loopback.Loopback({"region": "us-west-2"}, "run_us-west-2a").create_node({}, {}, 2)
    bucket.write(f"store/model/{ORIGIN}", "{}")
    assert "/store/model is there already" in run("up", recipe)
    with loopback.cloud() as state:
        assert state["machines"] == {}
    assert not read_state(tmp_path / "spot.json").cluster


def test_status_without_a_cluster(write: Callable[..., str], bucket: Bucket) -> None:
    told = run("status", write(store=f"{bucket.uri}/store")).splitlines()
    assert told == ["no cluster; $0.00 spent, 0 starts", f"{bucket.uri}/store/run: not begun"]


def test_one_launcher_at_a_time(write: Callable[..., str], tmp_path: Path) -> None:
    """Another one of the same state is refused; `down` has the first one end."""
    state = tmp_path / "spot.json"
    code = f"""
import time
from pathlib import Path
from ray_apps.spot.commands import _interrupted_when_told_to_end
from ray_apps.spot.launch_state import Cluster, LaunchState, held, read_state, write_state
with held(Path({str(state)!r})), _interrupted_when_told_to_end():
    try:
        print("held", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("saved", flush=True)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        refused = rf"spot.json: process {first.pid} looks after this cluster already"
        with pytest.raises(SpotError, match=refused), held(state):
            pass
        with held(state, end_other=True):
            assert first.wait(10) == 0
            assert first.stdout.read() == "saved\n"
