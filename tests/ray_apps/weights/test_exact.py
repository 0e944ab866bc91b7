"""Exact deltas give the target bit for bit, or nothing."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import ModelError
from ray_apps.weights import exact
from ray_apps.weights.exact import MANIFEST, apply_exact, make_exact
from ray_apps.weights.tensor_files import DTYPES, TensorFiles
from tests.ray_apps.weights import models
from tests.ray_apps.weights.test_delta import read, run


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_target_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    base = models.tensors(1, dtype=dtype, vocab=300)
    target = {
        name: (tensor.float() * (1 + 1e-3 * torch.randn(tensor.shape))).to(dtype) for name, tensor in base.items()
    }
    ours = models.write(tmp_path / "base", base, "bin-shards")
    theirs = models.write(tmp_path / "target", target, "safetensors-shards", name="target")
    run("make-delta", ours, theirs, str(tmp_path / "delta"), "--exact")
    run("apply-delta", ours, str(tmp_path / "delta"), str(tmp_path / "again"))
    assert "5 tensors are the same bit for bit, 0 differ" in run("inspect", theirs, str(tmp_path / "again"))
    assert (tmp_path / "again" / "tokenizer.model").read_text() == "target"
    assert not (tmp_path / "again" / MANIFEST).exists()
    assert (tmp_path / "delta" / "exact-00001.bin").stat().st_size < sum(tensor.nbytes for tensor in target.values())


def test_another_base_is_refused_by_name(tmp_path: Path) -> None:
    base = models.tensors(1)
    ours = models.write(tmp_path / "base", base)
    theirs = models.write(tmp_path / "target", models.tensors(2))
    run("make-delta", ours, theirs, str(tmp_path / "delta"), "--exact")
    base["model.norm.weight"][0] += 1
    other = models.write(tmp_path / "other", base)
    with pytest.raises(ModelError, match=r"is not the one that '.*' was made from: model.norm.weight differs"):
        run("apply-delta", other, str(tmp_path / "delta"), str(tmp_path / "output"))
    del base["model.norm.weight"]
    less = models.write(tmp_path / "less", base)
    with pytest.raises(ModelError, match=r"model.norm.weight: is missing"):
        run("apply-delta", less, str(tmp_path / "delta"), str(tmp_path / "output"))
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("harm", ["flip", "cut"])
def test_a_damaged_delta_gives_nothing(tmp_path: Path, harm: str) -> None:
    ours = models.write(tmp_path / "base", models.tensors(1))
    theirs = models.write(tmp_path / "target", models.tensors(2))
    run("make-delta", ours, theirs, str(tmp_path / "delta"), "--exact")
    data = tmp_path / "delta" / "exact-00001.bin"
    held = bytearray(data.read_bytes())
    held[-20] ^= 1
    data.write_bytes(held if harm == "flip" else held[:-20])
    with pytest.raises(ModelError, match=r"exact-00001.bin: .* is damaged"):
        run("apply-delta", ours, str(tmp_path / "delta"), str(tmp_path / "output"))
    (tmp_path / "delta" / MANIFEST).write_text("{}")
    with pytest.raises(ModelError, match="not the manifest of an exact delta"):
        run("apply-delta", ours, str(tmp_path / "delta"), str(tmp_path / "output"))
    assert not (tmp_path / "output").exists()


@given(data=st.data())
def test_whatever_the_tensors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Other types, other numbers of rows, tensors that the base lacks, and such as nobody would call a fine-tune."""
    place = tmp_path_factory.mktemp("any")

    def draw() -> models.Tensors:
        names = data.draw(st.lists(st.sampled_from("abcd"), min_size=1, unique=True))
        made = {}
        for name in names:
            shape = data.draw(st.lists(st.integers(0, 4), max_size=2))
            dtype = getattr(torch, data.draw(st.sampled_from(sorted(DTYPES.values()))))
            made[name] = torch.randint(0, 2, shape).to(dtype)
        return made

    base, target = draw(), draw()
    ours, theirs = (models.write(place / name, value) for name, value in (("base", base), ("target", target)))
    for name in ("delta", "again"):
        (place / name).mkdir()
    make_exact(TensorFiles(ours), TensorFiles(theirs), place / "delta")
    apply_exact(TensorFiles(ours), place / "delta", place / "again")
    (place / "again" / "config.json").write_text("{}")
    again = read(place / "again")
    assert {name: tensor.dtype for name, tensor in again.items()} == {n: t.dtype for n, t in target.items()}
    for name, tensor in target.items():
        assert torch.equal(again[name].float(), tensor.float())


def test_a_manifest_that_lost_a_tensor_is_refused_and_a_whole_one_listed(tmp_path: Path) -> None:
    ours = models.write(tmp_path / "base", models.tensors(1))
    theirs = models.write(tmp_path / "target", models.tensors(2))
    run("make-delta", ours, theirs, str(tmp_path / "delta"), "--exact")
    assert "model.norm.weight" in run("inspect", str(tmp_path / "delta"))
    with pytest.raises(ModelError, match="it is an exact delta; `vicuna weights apply-delta`"):
        run("to-safetensors", str(tmp_path / "delta"), str(tmp_path / "output"))
    path = tmp_path / "delta" / MANIFEST
    whole = json.loads(path.read_text())
    for harm in ({"dtype": "x"}, {"file": "../exact-00001.bin"}, {"at": "x"}, {"shape": [-1, 8]}, {"bytes": 2**60}):
        tensors = {name: {**entry, **harm} for name, entry in whole["tensors"].items()}
        path.write_text(json.dumps({**whole, "tensors": tensors, "checksum": exact._checksum(tensors)}))
        with pytest.raises(ModelError, match="not the manifest of an exact delta"):
            run("apply-delta", ours, str(tmp_path / "delta"), str(tmp_path / "output"))
    del whole["tensors"]["model.norm.weight"]
    path.write_text(json.dumps(whole))
    with pytest.raises(ModelError, match=r"exact\.json is damaged: its checksum is not that of what it says"):
        run("apply-delta", ours, str(tmp_path / "delta"), str(tmp_path / "output"))


def test_a_large_one_is_in_parts(tmp_path: Path) -> None:
    ours = models.write(tmp_path / "base", models.tensors(1))
    theirs = models.write(tmp_path / "target", models.tensors(2))
    for name in ("delta", "again"):
        (tmp_path / name).mkdir()
    make_exact(TensorFiles(ours), TensorFiles(theirs), tmp_path / "delta", part_bytes=300)
    assert len(list((tmp_path / "delta").glob("exact-*.bin"))) > 1
    apply_exact(TensorFiles(ours), tmp_path / "delta", tmp_path / "again")
    (tmp_path / "again" / "config.json").write_text("{}")
    assert all(torch.equal(tensor, models.tensors(2)[name]) for name, tensor in read(tmp_path / "again").items())
