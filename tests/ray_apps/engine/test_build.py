import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.errors import ConfigError, ModelError
from ray_apps.engine.build import build_engine, choose_engine
from ray_apps.engine.fake import FakeEngine
from ray_apps.engine.native.engine import NativeEngine
from ray_apps.engine.options import Device, EngineOptions


def test_auto_is_the_native_engine(tiny_model_dir: Path) -> None:
    engine = build_engine("auto", str(tiny_model_dir), EngineOptions(device="cpu", max_model_len=64))
    assert isinstance(engine, NativeEngine)
    assert engine.max_model_len == 64
    engine.shutdown()


@pytest.mark.parametrize(
    ("installed", "device", "chosen"), [(True, "cuda", "vllm"), (True, "cpu", "native"), (False, "cuda", "native")]
)
def test_auto_is_vllm_where_that_and_a_gpu_are(
    monkeypatch: pytest.MonkeyPatch, installed: bool, device: Device, chosen: str
) -> None:
    monkeypatch.setattr("ray_apps.engine.build.is_vllm_installed", lambda: installed)
    assert choose_engine("auto", device) == chosen
    assert choose_engine("native", device) == "native"


def test_what_only_vllm_has_is_refused_elsewhere(monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path) -> None:
    monkeypatch.setattr("ray_apps.engine.build.is_vllm_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"args\.engine: 'vllm' is not valid, .*pip install -e '\.\[vllm\]'"):
        build_engine("vllm", str(tiny_model_dir))
    with pytest.raises(ConfigError, match=r"args\.engine_args: are those of vLLM"):
        build_engine("native", str(tiny_model_dir), EngineOptions(engine_args={"enforce_eager": True}))


def test_the_fake_engine_takes_no_model() -> None:
    engine = build_engine("fake", "nowhere", EngineOptions(max_model_len=64))
    assert isinstance(engine, FakeEngine)
    assert engine.max_model_len == 64


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        build_engine("native", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("module", ["ray_apps.engine.build", "ray_apps.serve.api", "ray_apps.serve.config_file"])
def test_choosing_an_engine_and_speaking_http_load_no_torch(module: str) -> None:
    code = f"import {module}, sys; print(sorted({{'torch', 'transformers', 'ray'}} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"
