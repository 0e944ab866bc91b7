import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from data_prep.errors import ModelError
from ray_apps.model_dir import fingerprint_model, local_model_dir, stream_tensors, write_tensors

Tensors = dict[str, torch.Tensor]
SMALL = 50_000

tensors = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6),
    st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from([torch.float32, torch.bfloat16, torch.int64])),
    min_size=1,
    max_size=8,
).map(lambda shapes: {name: torch.ones(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()})


def num_bytes(values: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in values.values())


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def rewritten(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """The tiny model with its weights in many shards."""
    shutil.copy(tiny_model_dir / "config.json", tmp_path)
    write_tensors(tmp_path, stream_tensors(tiny_model_dir), shard_bytes=SMALL)
    return tmp_path


def test_transformers_loads_shards_and_their_index(rewritten: Path, tiny_model_dir: Path) -> None:
    assert len(list(rewritten.glob("*.safetensors"))) > 2
    before = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    after, loading = AutoModelForCausalLM.from_pretrained(rewritten, output_loading_info=True)
    assert not any(loading.values())
    assert_same(after.state_dict(), before.state_dict())


def test_the_index_names_the_shard_of_each_tensor_and_the_size_of_all(rewritten: Path, tiny_model_dir: Path) -> None:
    index = json.loads((rewritten / "model.safetensors.index.json").read_text())
    shards = {path.name: load_file(path) for path in rewritten.glob("*.safetensors")}
    count = len(shards)
    assert sorted(shards) == [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    assert index["weight_map"] == {name: file for file, shard in shards.items() for name in shard}
    assert index["metadata"]["total_size"] == sum(map(num_bytes, shards.values()))
    assert index["weight_map"].keys() == dict(stream_tensors(tiny_model_dir)).keys()


def test_what_fits_into_one_shard_needs_no_index(tiny_model_dir: Path, tmp_path: Path) -> None:
    write_tensors(tmp_path, stream_tensors(tiny_model_dir))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert_same(load_file(tmp_path / "model.safetensors"), dict(stream_tensors(tiny_model_dir)))


@given(values=tensors, shard_bytes=st.integers(1, 200))
def test_every_tensor_is_written_once_and_no_shard_is_too_large(
    tmp_path_factory: pytest.TempPathFactory, values: Tensors, shard_bytes: int
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    write_tensors(directory, values.items(), shard_bytes)
    streamed = list(stream_tensors(directory))
    assert len(streamed) == len(values)
    assert_same(dict(streamed), values)
    for path in directory.glob("*.safetensors"):
        shard = load_file(path)
        assert len(shard) == 1 or num_bytes(shard) <= shard_bytes


def test_a_view_of_a_larger_tensor_is_written_as_itself(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path, [("transposed", whole.T), ("row", whole[1])])
    assert_same(dict(stream_tensors(tmp_path)), {"transposed": whole.T.contiguous(), "row": whole[1].clone()})


def test_a_directory_without_weights_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError) as caught:
        local_model_dir(str(tmp_path))
    assert str(caught.value) == f"model {str(tmp_path)!r}: it has no *.safetensors weights"


def test_a_fingerprint_sees_every_tensor_and_the_config(tiny_model_dir: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(tiny_model_dir, tmp_path / "model")
    weights = {f"layer.{number}": torch.zeros(300, 300) for number in range(40)}
    write_tensors(directory, weights.items())
    seen = {fingerprint_model(directory)}
    for name in weights:
        changed = weights | {name: torch.ones(300, 300)}
        write_tensors(directory, changed.items())
        seen.add(fingerprint_model(directory))
    (directory / "config.json").write_text("{}")
    seen.add(fingerprint_model(directory))
    assert len(seen) == 42
    assert fingerprint_model(directory) in seen


@pytest.mark.parametrize(
    "index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": []}}', '{"weight_map": {"a": 1}}']
)
def test_a_malformed_index_is_one_clear_line(tiny_model_dir: Path, tmp_path: Path, index: str) -> None:
    shutil.copy(tiny_model_dir / "config.json", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json is not readable") as caught:
        local_model_dir(str(tmp_path))
    assert "\n" not in str(caught.value)
