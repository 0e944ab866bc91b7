"""Weights are read from what people have, and refused where they are not whole or want to do something."""

import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
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


def indexed(model: str, change: Callable[[dict[str, str]], object]) -> None:
    path = Path(model) / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names.update({"extra": "model-00001-of-00002.safetensors"}), "there is no extra, which the"),
        (lambda names: names.pop("model.norm.weight"), "holds model.norm.weight, of which the index says nothing"),
        (
            lambda names: names.update({"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}),
            "model-00001-of-00002.safetensors: there is no model.embed_tokens.weight",
        ),
        (lambda names: names.update({"extra": "../other.safetensors"}), "is not a file beside it"),
        (lambda names: names.update({"extra": 5}), "not an index of weights"),
        (lambda names: names.clear(), "it has no tensors"),
    ],
)
def test_an_index_is_held_against_its_shards(tmp_path: Path, change: Any, message: str) -> None:
    model = models.write(tmp_path / "model", models.tensors(1), "safetensors-shards")
    indexed(model, change)
    assert message in refused(model)


@pytest.mark.parametrize(
    "held",
    [
        {},
        {1: torch.ones(1)},
        {"a": torch.ones(1, dtype=torch.complex64)},
        {"a": torch.ones(2, 2).to_sparse()},
        {"a": torch.ones(1, dtype=torch.uint16)},
    ],
)
def test_what_is_no_weights_is_refused(tmp_path: Path, held: dict[Any, torch.Tensor]) -> None:
    model = models.write(tmp_path / "model", models.tensors(1), "bin")
    torch.save(held, f"{model}/pytorch_model.bin")
    assert any(words in refused(model) for words in ("has no tensors", "is no mapping", "is not read; valid"))


@given(data=st.data())
def test_a_damaged_pickle_is_one_line_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    model = models.write(tmp_path_factory.mktemp("damaged") / "model", models.tensors(1), "bin")
    path = Path(model) / "pytorch_model.bin"
    is_zip = data.draw(st.booleans())
    torch.save(models.tensors(1), path, _use_new_zipfile_serialization=is_zip)
    held = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        held[data.draw(st.integers(0, len(held) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(held)
    read: dict[str, torch.Tensor] | None = None
    with suppress(ModelError):  # and nothing else
        read = dict(TensorFiles(model).stream())
    assert read is None or all(isinstance(tensor, torch.Tensor) for tensor in read.values())
