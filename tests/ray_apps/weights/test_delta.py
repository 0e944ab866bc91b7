"""Deltas between small models in every form, as a person makes and applies them."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from data_prep.errors import ConfigError, ModelError
from ray_apps.cli import vicuna
from ray_apps.weights import delta as deltas
from ray_apps.weights.tensor_files import TensorFiles
from tests.ray_apps.weights import models
from tests.ray_apps.weights.models import Tensors

MIXTURES = [("bin", "safetensors"), ("safetensors-shards", "bin-shards"), ("bin-shards", "safetensors-shards")]


def run(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(vicuna, ["weights", *words], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def read(directory: Path) -> Tensors:
    return dict(TensorFiles(str(directory)).stream())


@pytest.mark.parametrize(("of_base", "of_target"), MIXTURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_base_and_delta_are_the_target(tmp_path: Path, of_base: str, of_target: str, dtype: torch.dtype) -> None:
    base, target = models.tensors(1, dtype=dtype), models.tensors(2, dtype=dtype)
    ours = models.write(tmp_path / "base", base, of_base)
    theirs = models.write(tmp_path / "target", target, of_target, name="target")
    run("make-delta", ours, theirs, str(tmp_path / "delta"))
    delta = read(tmp_path / "delta")
    assert {name: tensor.dtype for name, tensor in delta.items()} == dict.fromkeys(target, dtype)
    for name in target:  # the arithmetic of the published ones: in the storage type
        assert torch.equal(delta[name], target[name] - base[name])
    run("apply-delta", ours, str(tmp_path / "delta"), str(tmp_path / "again"), "--low-cpu-mem")
    again = read(tmp_path / "again")
    for name in target:
        assert torch.equal(again[name], base[name] + delta[name])
        assert torch.allclose(again[name].float(), target[name].float(), atol=4 * torch.finfo(dtype).eps)
    assert (tmp_path / "again" / "tokenizer.model").read_text() == "target"
    assert '"of": "target"' in (tmp_path / "again" / "config.json").read_text()


@pytest.mark.parametrize(("base_rows", "target_rows"), [(32, 33), (33, 32), (33, 33)])
def test_a_vocabulary_of_another_size(tmp_path: Path, base_rows: int, target_rows: int) -> None:
    """A base of 32,000 tokens and a target of 32,001: the row that only the target has is in the delta as it is."""
    base, target = models.tensors(1, vocab=base_rows), models.tensors(2, vocab=target_rows)
    ours = models.write(tmp_path / "base", base)
    theirs = models.write(tmp_path / "target", target)
    run("make-delta", ours, theirs, str(tmp_path / "delta"))
    delta = read(tmp_path / "delta")
    if target_rows > base_rows:
        assert torch.equal(delta["lm_head.weight"][32], target["lm_head.weight"][32])
    run("apply-delta", ours, str(tmp_path / "delta"), str(tmp_path / "again"))
    for name, tensor in read(tmp_path / "again").items():
        assert tensor.shape == target[name].shape
        assert torch.allclose(tensor, target[name], atol=1e-5)


def test_buffers_that_a_model_computes_may_be_missing(tmp_path: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    base = models.write(tmp_path / "base", models.tensors(1))
    target = models.write(tmp_path / "target", models.tensors(2) | buffer)
    run("make-delta", base, target, str(tmp_path / "delta"))
    assert set(read(tmp_path / "delta")) == set(models.tensors(1))
    published = models.write(tmp_path / "published", models.tensors(3) | buffer)
    run("apply-delta", base, published, str(tmp_path / "one"))
    old = models.write(tmp_path / "old", models.tensors(1) | buffer)
    run("apply-delta", old, str(tmp_path / "delta"), str(tmp_path / "two"))
    assert set(read(tmp_path / "one")) == set(read(tmp_path / "two")) == set(models.tensors(1))


def test_every_difference_is_listed_before_anything_is_written(tmp_path: Path) -> None:
    other = models.tensors(2) | {"extra": torch.ones(1), "model.norm.weight": torch.ones(9)}
    del other["model.layers.0.input_layernorm.weight"]
    base = models.write(tmp_path / "base", models.tensors(1))
    delta = models.write(tmp_path / "delta", other)
    with pytest.raises(ModelError) as caught:
        run("apply-delta", base, delta, str(tmp_path / "output"))
    for line in (
        "extra: only in delta",
        "model.layers.0.input_layernorm.weight: only in base",
        "model.norm.weight: [8] and [9] in base and delta",
    ):
        assert line in str(caught.value)
    assert not (tmp_path / "output").exists()


def test_a_target_that_is_there_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = models.write(tmp_path / "base", models.tensors(1))
    target = models.write(tmp_path / "target", models.tensors(2))
    output = tmp_path / "output"
    run("make-delta", base, target, str(output))
    before = read(output)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(deltas, "write_model", full)
    with pytest.raises(OSError, match="No space left"):
        run("make-delta", base, base, str(output))
    assert all(torch.equal(tensor, before[name]) for name, tensor in read(output).items())
    assert {path.name for path in tmp_path.iterdir()} == {"base", "target", "output"}
    with pytest.raises(ConfigError, match=r"output: .* has no origin.json: it is not ours to replace"):
        run("to-safetensors", base, target)


def test_other_forms_become_safetensors(tmp_path: Path) -> None:
    weights = models.tensors(1)
    model = models.write(tmp_path / "model", weights, "bin-shards")
    run("to-safetensors", model, str(tmp_path / "output"))
    assert [path.name for path in (tmp_path / "output").glob("*.bin*")] == []
    assert "5 tensors are the same bit for bit, 0 differ" in run("inspect", model, str(tmp_path / "output"))


def test_what_is_in_a_directory_and_what_differs(tmp_path: Path) -> None:
    model = models.write(tmp_path / "model", models.tensors(1))
    told = run("inspect", model)
    assert "model.embed_tokens.weight" in told
    assert "32 × 8" in told
    assert "5 tensors, 2,368 bytes in 1 files" in told
    changed = models.tensors(1)
    changed["model.norm.weight"][3] += 0.5
    del changed["lm_head.weight"]
    told = run("inspect", model, models.write(tmp_path / "other", changed), code=1)
    assert "3 tensors are the same bit for bit, 2 differ" in told
    assert "is missing" in told
    assert "0.5" in told


def test_all_differences_are_listed(tmp_path: Path) -> None:
    more = {f"extra.{number}": torch.ones(1) for number in range(30)}
    base = models.write(tmp_path / "base", models.tensors(1))
    other = models.write(tmp_path / "other", models.tensors(1) | more)
    with pytest.raises(ModelError) as caught:
        run("make-delta", base, other, str(tmp_path / "output"))
    assert [f"{name}: only in target" for name in sorted(more)] == str(caught.value).splitlines()[1:]


def test_what_does_not_go_together(tmp_path: Path) -> None:
    base = models.write(tmp_path / "base", models.tensors(1))
    other = models.write(tmp_path / "other", models.tensors(1, vocab=600))
    with pytest.raises(ModelError, match=r"lm_head\.weight: \[32, 8\] and \[600, 8\] in base and target"):
        run("make-delta", base, other, str(tmp_path / "output"))
    flags = {name: tensor > 0 for name, tensor in models.tensors(1).items()}
    with pytest.raises(ModelError, match=r"bool in target cannot be added or subtracted; make-delta --exact takes"):
        run("make-delta", base, models.write(tmp_path / "flags", flags), str(tmp_path / "output"))


def test_low_memory_is_said_to_be_always_so(tmp_path: Path) -> None:
    base = models.write(tmp_path / "base", models.tensors(1))
    run("make-delta", base, base, str(tmp_path / "delta"))
    told = run("apply-delta", base, str(tmp_path / "delta"), str(tmp_path / "again"), "--low-cpu-mem")
    assert "it is always so" in told


def test_a_list_in_a_pipe_is_not_cut(tmp_path: Path) -> None:
    name = "model.layers.0.a_name_that_is_longer_than_a_terminal_is_wide_" + "x" * 80
    model = models.write(tmp_path / "model", {name: torch.ones(3, 1000)})
    told = run("inspect", model)
    for cell in (name, "3 × 1,000", "float32", "12,000"):
        assert cell in told
    changed = models.write(tmp_path / "changed", {name: torch.full((3, 1000), 1.5)})
    assert "0.5" in run("inspect", model, changed, code=1)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_base_of_the_same_shapes_is_told_from_another(tmp_path: Path, form: str) -> None:
    """By a delta that was made here; published ones say nothing of their base."""
    base = models.write(tmp_path / "base", models.tensors(1), form)
    target = models.write(tmp_path / "target", models.tensors(2))
    other = models.write(tmp_path / "other", models.tensors(3), form)
    run("make-delta", base, target, str(tmp_path / "delta"))
    with pytest.raises(ModelError, match=r"base '.*other' is not the one that '.*delta' was made from"):
        run("apply-delta", other, str(tmp_path / "delta"), str(tmp_path / "again"))
    run("apply-delta", base, str(tmp_path / "delta"), str(tmp_path / "again"))
    assert not (tmp_path / "again" / "delta.json").exists()
    (tmp_path / "delta" / "delta.json").unlink()
    run("apply-delta", other, str(tmp_path / "delta"), str(tmp_path / "third"))


def test_an_exact_delta_is_of_two_that_belong_together(tmp_path: Path) -> None:
    base = models.write(tmp_path / "base", models.tensors(1))
    other = models.write(tmp_path / "other", {"a": torch.ones(1)})
    with pytest.raises(ModelError, match="a: only in target"):
        run("make-delta", base, other, str(tmp_path / "delta"), "--exact")
