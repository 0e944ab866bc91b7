"""Weights are read from what people have, and refused where they are not whole or want to do something."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from data_prep.errors import ModelError
from ray_apps.weights.tensor_files import DTYPES, Spec, TensorFiles, other_files
from ray_apps.weights.tensor_writer import write_model
from tests.ray_apps.weights import models

FORMS = ["safetensors", "safetensors-shards", "bin", "bin-shards"]


def refused(model: str) -> str:
    with pytest.raises(ModelError) as caught:
        for _ in TensorFiles(model).stream():
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_tensors(tmp_path: Path, form: str) -> None:
    weights = models.tensors(1, dtype=torch.float16)
    files = TensorFiles(models.write(tmp_path / "model", weights, form))
    assert files.specs == {name: Spec.of(tensor) for name, tensor in weights.items()}
    assert files.num_bytes == sum(tensor.nbytes for tensor in weights.values())
    streamed = dict(files.stream())
    assert list(streamed) == list(files.specs)
    for name, tensor in weights.items():
        assert torch.equal(streamed[name], tensor)
        assert torch.equal(files.read(name), tensor)
    assert [path.name for path in other_files(files.directory)] == [
        "config.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]


def test_files_of_before_2020(tmp_path: Path) -> None:
    weights = models.tensors(1)
    directory = models.write(tmp_path / "model", weights, "bin")
    torch.save(weights, f"{directory}/pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in TensorFiles(directory).stream())


class Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("touch harm",)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_that_wants_to_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_zip: bool) -> None:
    monkeypatch.chdir(tmp_path)
    directory = models.write(tmp_path / "model", models.tensors(1), "bin")
    if is_zip:
        torch.save({"weight": Malicious()}, f"{directory}/pytorch_model.bin")
    else:
        Path(f"{directory}/pytorch_model.bin").write_bytes(pickle.dumps({"weight": Malicious()}))
    assert "pytorch_model.bin: it holds more than tensors, and is not loaded" in refused(directory)
    assert not Path("harm").exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_is_cut_off(tmp_path: Path, form: str, share: float) -> None:
    directory = models.write(tmp_path / "model", models.tensors(1), form)
    path = sorted(Path(directory).glob("*model*.safetensors" if "safe" in form else "*.bin"))[0]
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert f"{path}: it is cut off" in refused(directory)


@pytest.mark.parametrize("form", ["safetensors-shards", "bin-shards"])
def test_a_shard_that_is_missing(tmp_path: Path, form: str) -> None:
    directory = models.write(tmp_path / "model", models.tensors(1), form)
    sorted(Path(directory).glob("*00002-of*"))[0].unlink()
    assert "-00002-of-00002." in refused(directory)
    assert "index.json names, is not there" in refused(directory)


def test_what_is_no_model(tmp_path: Path) -> None:
    directory = models.write(tmp_path / "model", models.tensors(1), "safetensors-shards")
    Path(f"{directory}/model.safetensors.index.json").write_text("{}")
    assert "not an index of weights" in refused(directory)
    for path in Path(directory).glob("model*"):
        path.unlink()
    assert "it has none of model.safetensors, " in refused(directory)
    torch.save([1, 2], f"{directory}/pytorch_model.bin")
    assert "it is no mapping of names to tensors" in refused(directory)
    assert "no such directory" in refused(str(tmp_path / "nowhere"))


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6),
    dtype=st.sampled_from(sorted(DTYPES.values())),
    shard_bytes=st.integers(1, 400),
)
def test_what_is_written_is_read_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], dtype: str, shard_bytes: int
) -> None:
    directory = tmp_path_factory.mktemp("written")
    (directory / "config.json").write_text("{}")
    weights = {
        f"weight{number}": torch.randint(0, 2, shape).to(getattr(torch, dtype)) for number, shape in enumerate(shapes)
    }
    counted: list[int] = []
    specs = {name: Spec.of(tensor) for name, tensor in weights.items()}
    write_model(directory, specs, weights.items(), on_bytes=counted.append, shard_bytes=shard_bytes)
    files = TensorFiles(str(directory))
    assert files.specs == specs
    assert sum(counted) == files.num_bytes
    for path in files.files:
        for name, tensor in load_file(path).items():
            assert tensor.dtype == weights[name].dtype
            assert torch.equal(tensor.float(), weights[name].float())


def test_a_tensor_out_of_turn_is_never_written_under_another_name(tmp_path: Path) -> None:
    weights = models.tensors(1)
    specs = {name: Spec.of(tensor) for name, tensor in weights.items()}
    with pytest.raises(ValueError, match="in place of"):
        write_model(tmp_path, specs, reversed(weights.items()))
