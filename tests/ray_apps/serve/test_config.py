from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import ConfigError, ModelError
from ray_apps.serve.config import DEMO_MODEL, ServeArgs, resolve_model, resolve_models


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modell": "x"}, r"args\.modell: unknown field; did you mean 'model'\?"),
        ({"engine": "tgi"}, r"args\.engine: 'tgi' is not valid; expected 'auto', 'native', 'vllm' or 'fake'"),
        ({"device": "tpu"}, r"args\.device: 'tpu' is not valid"),
        ({"dtype": "int8"}, r"args\.dtype: 'int8' is not valid"),
        ({"tensor_parallel_size": 0}, r"args\.tensor_parallel_size"),
        (
            {"tensor_parallel_size": 2, "quantize": "nf4"},
            r"quantize: cannot be set together with tensor_parallel",
        ),
        ({"num_gpus": 2}, r"device_map: 'auto' and a num_gpus of 2 or more are set together"),
        ({"max_memory": {0: "20GiB"}}, r"max_memory: is for a device_map"),
        ({"num_replicas": "2"}, r"args\.num_replicas: '2' is not valid"),
        ({"num_replicas": 0}, r"args\.num_replicas: 0 is not valid"),
        ({"num_replicas": 1, "autoscaling": {}}, r"args\.autoscaling: cannot be set together with num_replicas"),
        ({"autoscaling": {"min_replicas": 3, "max_replicas": 2}}, r"args\.autoscaling\.max_replicas: 2 is not valid"),
        ({"autoscaling": {"max": 2}}, r"args\.autoscaling\.max: unknown field"),
        ({"max_queued_requests": -1}, r"args\.max_queued_requests: -1 is not valid"),
        ({"model": ""}, r"args\.model: '' is not valid"),
        (
            {"model": "a", "aliases": ["b", "a"]},
            r"args\.aliases: 'a' names two things: model_name, aliases",
        ),
        ({"aliases": ["b"], "adapters": {"b": "dir"}}, r"args\.aliases: 'b' names two things"),
        ({"models": [{"model": "x/a"}, {"model": "y/a"}]}, r"args\.models: 'a' names both models\.0 and models\.1$"),
        (
            {"models": [{"model": "a"}, {"model": "b", "aliases": ["b"]}]},
            r"args\.models\.1\.aliases: 'b' names two things",
        ),
        ({"models": [{"model": "a"}], "engine": "fake"}, r"args\.engine: cannot be set beside models"),
        ({"models": [{"modle": "a"}]}, r"args\.models\.0\.modle: unknown field; did you mean 'model'\?"),
    ],
)
def test_a_wrong_field_is_one_line_that_names_it(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ServeArgs.parse(fields, "args")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "name", "served"),
    [
        ("artifacts/demo/model", None, "model"),
        ("s3://bucket/vicuna-7b/", None, "vicuna-7b"),
        ("org/vicuna", None, "vicuna"),
        ("org/vicuna", "mine", "mine"),
    ],
)
def test_the_served_name_is_the_last_part_unless_it_is_given(model: str, name: str | None, served: str) -> None:
    assert ServeArgs(model=model, model_name=name).served_name == served


def test_a_model_directory_is_made_absolute_and_keeps_its_name(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model_dir.parent)
    resolved = resolve_model(ServeArgs(model=tiny_model_dir.name))
    assert (resolved.model, resolved.served_name) == (str(tiny_model_dir), tiny_model_dir.name)


@pytest.mark.parametrize("model", [DEMO_MODEL, "/nowhere/at/all", "nowhere"])
def test_an_absent_directory_is_one_line_that_says_what_to_do(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelError, match=rf"^model directory {model} does not exist; run `make demo` or set args.model$"
    ):
        resolve_model(ServeArgs(model=model))


def test_the_fake_engine_needs_no_model() -> None:
    args = ServeArgs(model="nowhere", engine="fake")
    assert resolve_model(args) == args


def test_a_directory_without_weights_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model_dir / name).read_bytes())
    with pytest.raises(ModelError, match=r"it has no \*\.safetensors weights"):
        resolve_model(ServeArgs(model=str(tmp_path)))


def test_adapters_are_made_absolute_and_have_to_be_there(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pirate").mkdir()
    args = ServeArgs(model=str(tiny_model_dir), adapters={"arr": "pirate"})
    with pytest.raises(ModelError, match=r"^args\.adapters\.arr: pirate has no adapter_config.json"):
        resolve_model(args)
    (tmp_path / "pirate" / "adapter_config.json").write_text("{}")
    assert resolve_model(args).adapters == {"arr": str(tmp_path / "pirate")}


def test_one_model_and_several_are_the_same_settings() -> None:
    alone = ServeArgs.parse({"model": "x/a", "aliases": ["b"], "autoscaling": {"max_replicas": 2}})
    several = ServeArgs.parse({"models": [alone.all_models[0].model_dump(exclude_unset=True), {"model": "c"}]})
    assert several.all_models[0] == alone.all_models[0]
    assert [model.names for model in several.all_models] == [["a", "b"], ["c"]]


@pytest.mark.parametrize("several", [False, True])
def test_each_model_is_resolved(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    monkeypatch.chdir(tiny_model_dir.parent)
    fields = {"model": tiny_model_dir.name, "aliases": ["b"]}
    args = ServeArgs.parse({"models": [fields, {"engine": "fake"}]} if several else fields)
    resolved = resolve_models(args).all_models[0]
    assert (resolved.model, resolved.names) == (str(tiny_model_dir), [tiny_model_dir.name, "b"])
