import shutil
from pathlib import Path

import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from data_prep.errors import ModelError
from ray_apps.doctor.models import Size, count_parameters, look_for_dataset, needed_bytes, reach_model
from ray_apps.doctor.needs import Needs
from ray_apps.models import load_causal_lm


def test_a_directory_is_reached_and_weighed(tiny_model_dir: Path) -> None:
    assert reach_model(0, 1, str(tiny_model_dir)) == str(tiny_model_dir)
    model = load_causal_lm(tiny_model_dir, device="cpu")
    expected = sum(parameter.numel() for parameter in model.parameters())
    size = Size(*count_parameters(0, 1, str(tiny_model_dir), None))
    assert (size.num_parameters, size.num_trained) == (expected, expected)
    assert size.checkpoint_bytes == 12 * expected
    assert size.export_bytes == expected * next(model.parameters()).itemsize


def test_adapters_are_the_size_that_peft_makes_them(tiny_model_dir: Path) -> None:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "down_proj"]
    adapted = get_peft_model(load_causal_lm(tiny_model_dir), LoraConfig(r=4, target_modules=targets))
    expected = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert count_parameters(0, 1, str(tiny_model_dir), (4, frozenset(targets)))[1] == expected


@pytest.mark.parametrize(
    ("damage", "told"),
    [("config.json", "the directory has no config.json"), ("model.safetensors", "it has no *.safetensors weights")],
)
def test_a_model_that_lacks_a_file_is_refused(tiny_model_dir: Path, tmp_path: Path, damage: str, told: str) -> None:
    for file in tiny_model_dir.iterdir():
        if file.name != damage:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError) as caught:
        reach_model(0, 1, str(tmp_path))
    assert told in str(caught.value)


class Response:
    """As much of an HTTP response as the hub's errors keep."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.request = None
        self.status_code = 403


@pytest.mark.parametrize(
    ("error", "token", "told"),
    [
        (GatedRepoError, None, "gated, and there is no HF_TOKEN here; ask for access on its page"),
        (GatedRepoError, "hf_secret", "gated, and the token here has no access; ask for access on its page"),
        (RepositoryNotFoundError, None, "not on the hub, or private: there is no HF_TOKEN here"),
        (ConnectionError, None, "the hub cannot be reached, and there is no copy here: refused"),
    ],
)
def test_why_the_hub_refuses_is_told_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], token: str | None, told: str
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise error("refused", response=Response()) if error is not ConnectionError else error("refused")  # type: ignore[call-arg]

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refuse)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    with pytest.raises(ModelError) as caught:
        reach_model(0, 1, "org/name")
    assert str(caught.value) == f"model 'org/name': {told}"


def test_a_copy_of_an_earlier_download_will_do(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "models--org--name" / "snapshots" / "0123456789"
    shutil.copytree(tiny_model_dir, copy)
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("0123456789")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert reach_model(0, 1, "org/name") == str(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="there is no copy here"):
        reach_model(0, 1, "org/name")


def test_a_run_needs_room_for_its_checkpoints_and_its_model() -> None:
    size = Size(num_parameters=1000, num_trained=100, weight_bytes=2)
    needs = Needs(num_checkpoints=3)
    assert needed_bytes(needs, size) == {"train.run_dir": 3600, "train.output": 2000}
    assert needed_bytes(needs, None) == {}


def test_a_dataset_is_seen_by_its_manifest(tmp_path: Path) -> None:
    assert not look_for_dataset(0, 1, str(tmp_path))
    (tmp_path / "manifest.json").write_text("{}")
    assert look_for_dataset(0, 1, str(tmp_path))
