"""What every test may ask for: tiny tokenizers, a tiny model directory, hypothesis profiles."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, settings
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from tests import s3, tiny

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
disable_progress_bar()

_FIXTURES_LAST = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=_FIXTURES_LAST)
settings.register_profile("soak", deadline=None, max_examples=3000, suppress_health_check=_FIXTURES_LAST)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """One tokenizer of each supported kind."""
    return {name: make() for name, make in tiny.TOKENIZERS.items()}


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a byte-level tokenizer and a ChatML template."""
    return tiny.write_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a real S3 service on loopback."""
    with s3.serving() as address:
        yield address


@pytest.fixture
def bucket(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> s3.Bucket:
    """A bucket of that service, and a cache of this test's own."""
    for name, value in {**s3.variables(s3_endpoint), "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    return s3.Bucket(s3_endpoint, tmp_path.name)


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece model with the settings of Llama's."""
    place = tmp_path_factory.mktemp("sentencepiece")
    lines = (f"the quick brown fox number {i} jumps over the lazy dog, hello world {i * 7}\n" for i in range(500))
    (place / "text").write_text("".join(lines))
    sentencepiece.SentencePieceTrainer.train(
        input=str(place / "text"),
        model_prefix=str(place / "tokenizer"),
        vocab_size=380,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        minloglevel=2,
    )
    return place / "tokenizer.model"
