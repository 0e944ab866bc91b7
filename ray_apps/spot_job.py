"""The training of a recipe as a job on spot machines.

store/
    dataset/    put there by `vicuna spot up`, from where it was prepared
    run/        checkpoints and metrics: what a job elsewhere goes on from
    notices/    what watchers were told
    model/      put there by the job, when all is done
"""

from pathlib import Path

import yaml

from data_prep.errors import ConfigError, DataError
from data_prep.folder import Folder
from data_prep.manifest import MANIFEST_NAME, read_manifest
from data_prep.storage import is_hub_id, is_remote
from data_prep.tokenizer import fingerprint, load_tokenizer
from ray_apps.console import stage
from ray_apps.model_dir import ORIGIN
from ray_apps.recipe import Recipe, spot_section, train_section

DATASET, MODEL = "artifacts/spot/dataset", "artifacts/spot/model"
"""Where they are on the cluster."""


def job_recipe(recipe: Recipe, name: str) -> str:
    """The recipe called `name` as a job gets it, in YAML: its run is in the store.

    Raises:
        ConfigError: there is no section `train`, or its model is where the cluster cannot see it.
    """
    train, spot = train_section(recipe, name), spot_section(recipe, name)
    if not is_remote(train.model) and not is_hub_id(train.model):
        raise ConfigError(
            f"train.model: {train.model!r} is a directory of this machine; the cluster needs an s3:// path or a hub id"
        )
    placed = train.model_copy(update={"dataset": DATASET, "output": MODEL, "run_dir": spot.run_dir})
    store = spot.model_dump(mode="json", include={"store", "zones"})
    return yaml.safe_dump({"train": placed.model_dump(mode="json", exclude_unset=True), "spot": store})


def model_in_store(recipe: Recipe, name: str) -> str | None:
    """Where the model is that an earlier job has finished; None if none has."""
    folder = _folder(recipe, name, "model")
    return None if folder.read(ORIGIN) is None else str(folder)


def put_dataset(recipe: Recipe, name: str) -> None:
    """Have the dataset in the store; the one of this machine, if it is not there yet.

    Raises:
        DataError: it is in neither place, another one is in the store, or it does not fit the model.
    """
    train, folder = train_section(recipe, name), _folder(recipe, name, "dataset")
    stored, here = folder.read(MANIFEST_NAME), Path(train.dataset) / MANIFEST_NAME
    if not here.is_file():
        if stored is None:
            raise DataError(
                f"train.dataset: {train.dataset!r} is no dataset, and there is none at {folder}; "
                f"`vicuna prep {name}` makes one"
            )
        return
    if stored is not None and stored != here.read_text():
        raise DataError(
            f"train.dataset: {train.dataset!r} is not the dataset at {folder}; choose another spot.store, or remove it"
        )
    if fingerprint(load_tokenizer(train.model)) != read_manifest(train.dataset).tokenizer_fingerprint:
        raise DataError(
            f"train.dataset: {train.dataset!r} was made with another tokenizer than that of {train.model!r}"
        )
    if stored is None:
        with stage("dataset") as shown:
            folder.publish(Path(train.dataset), last=MANIFEST_NAME)
            shown.finish(str(folder))


def run_job(recipe: Recipe, name: str) -> None:
    """On the cluster: fetch the dataset, train or resume, put the model into the store."""
    from ray_apps.stages import export_stage, train_stage

    train, stored = train_section(recipe, name), _folder(recipe, name, "dataset")
    here = Path(train.dataset) / MANIFEST_NAME
    if not here.is_file() or here.read_text() != stored.read(MANIFEST_NAME):
        with stage("dataset") as shown:
            stored.fetch(here.parent)
            shown.finish(train.dataset)
    train_stage(train)
    model = export_stage(train)
    with stage("store") as shown:
        folder = _folder(recipe, name, "model")
        folder.publish(model, last=ORIGIN)
        shown.finish(str(folder))


def _folder(recipe: Recipe, name: str, part: str) -> Folder:
    store = spot_section(recipe, name).store
    if store is None:
        raise ConfigError("spot.store: is required for a job; expected s3://bucket/key")
    return Folder(f"{store}/{part}")
