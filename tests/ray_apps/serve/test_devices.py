import json
from pathlib import Path

import pytest

from data_prep.errors import ConfigError
from ray_apps.serve.devices import needed_devices


@pytest.fixture
def model(tmp_path: Path) -> str:
    """1,000 bytes of weights with 6 key heads."""
    for part in "ab":
        (tmp_path / f"{part}.safetensors").write_bytes(bytes(500))
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 12, "num_key_value_heads": 6}))
    return str(tmp_path)


@pytest.mark.parametrize(("device_bytes", "needed"), [(None, 1), (1500, 1), (1400, 2), (700, 3), (400, 6)])
def test_weights_take_as_few_devices_as_hold_them(model: str, device_bytes: int | None, needed: int) -> None:
    assert needed_devices(model, device_bytes) == needed


def test_a_model_too_large_for_any_number_is_refused_by_name(model: str) -> None:
    with pytest.raises(ConfigError, match=r"args\.tensor_parallel_size: .* too much for 6 devices"):
        needed_devices(model, 100)


def test_of_a_model_elsewhere_nothing_is_known() -> None:
    assert needed_devices("s3://bucket/vicuna-13b", 1) == 1
