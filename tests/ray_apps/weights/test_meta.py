"""Meta's layout, made from a small random Llama in 1, 2 and 4 parts, and back: the same logits, the same ids."""

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from data_prep.errors import ModelError
from ray_apps.weights.meta import NAMES
from tests.ray_apps.weights.test_delta import run

TEXTS = ["hello world 42", "the  fox\n\njumps é漢", " lead", "   x", "", "\ttab"]


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


def llama(num_key_value_heads: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=num_key_value_heads,
            vocab_size=380,
            rms_norm_eps=1e-5,
        )
    ).eval()


def write_meta(directory: Path, model: LlamaForCausalLM, num_parts: int, tokenizer: Path) -> None:
    """What Meta's trainer would have saved, one file for each of its devices."""
    directory.mkdir(parents=True)
    config = model.config
    parts: list[dict[str, torch.Tensor]] = [{"rope.freqs": torch.ones(2)} for _ in range(num_parts)]
    theirs = {name: (meta, axis) for meta, (name, axis) in NAMES.items()}
    for name, tensor in model.state_dict().items():
        layer = name.split(".")[2] if name.startswith("model.layers.") else None
        inner = name.removesuffix(".weight")
        meta, axis = theirs[inner.removeprefix(f"model.layers.{layer}.") if layer else inner]
        if meta in ("attention.wq", "attention.wk"):
            heads = config.num_attention_heads if meta == "attention.wq" else config.num_key_value_heads
            rows, columns = tensor.shape
            tensor = tensor.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
        pieces = [tensor] * num_parts if axis is None else tensor.chunk(num_parts, dim=axis)
        for part, piece in zip(parts, pieces, strict=True):
            part[f"layers.{layer}.{meta}.weight" if layer else f"{meta}.weight"] = piece.clone()
    for number, part in enumerate(parts):
        torch.save(part, directory / f"consolidated.{number:02d}.pth")
    params = {"dim": 32, "n_layers": 2, "n_heads": 8, "norm_eps": 1e-5, "vocab_size": -1, "multiple_of": 16}
    if config.num_key_value_heads != 8:
        params["n_kv_heads"] = config.num_key_value_heads
    (directory / "params.json").write_text(json.dumps(params))
    (directory.parent / "tokenizer.model").write_bytes(tokenizer.read_bytes())


@pytest.mark.parametrize("num_parts", [1, 2, 4])
@pytest.mark.parametrize("num_key_value_heads", [8, 4])
def test_the_logits_are_the_same(tmp_path: Path, sentences: Path, num_parts: int, num_key_value_heads: int) -> None:
    model = llama(num_key_value_heads)
    write_meta(tmp_path / "llama" / "7B", model, num_parts, sentences)
    run("convert-llama", str(tmp_path / "llama" / "7B"), str(tmp_path / "output"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "output", dtype=torch.float32).eval()
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-5)
    assert again.config.max_position_embeddings == 4096
    assert again.config.num_key_value_heads == num_key_value_heads
    assert again.generation_config.eos_token_id == 2


@pytest.fixture(scope="module")
def tokenizer(sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    place = tmp_path_factory.mktemp("converted")
    write_meta(place / "7B", llama(8), 1, sentences)
    run("convert-llama", str(place / "7B"), str(place / "output"))
    assert (place / "output" / "tokenizer.model").read_bytes() == sentences.read_bytes()
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place / "output")
    return loaded


def test_the_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert ids == (1, 2, 0)
    assert "" not in tokenizer.all_special_tokens
    assert len(tokenizer) == 380


@given(
    text=st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"])).map(lambda s: s.replace("▁", "_"))
)
def test_the_same_ids_as_sentencepiece(tokenizer: PreTrainedTokenizerBase, sentences: Path, text: str) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentences))
    if any(special in text for special in ("<s>", "</s>", "<unk>")) or "\0" in text:
        return
    ids = tokenizer(text).input_ids
    assert ids == [1, *reference.encode(text)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda place: (place / "params.json").unlink(), "there is no params.json"),
        (lambda place: (place / "params.json").write_text("{}"), "params.json: n_heads is missing"),
        (lambda place: (place / "consolidated.00.pth").unlink(), "consolidated.00.pth is not there"),
        (lambda place: (place / "consolidated.01.pth").write_bytes(b""), "consolidated.01.pth: it is cut off"),
        (lambda place: (place.parent / "tokenizer.model").unlink(), "there is no tokenizer.model"),
        (lambda place: (place.parent / "tokenizer.model").write_text("x"), "tokenizer.model: no SentencePiece model"),
        (lambda place: torch.save({"any.weight": torch.ones(1)}, place / "consolidated.00.pth"), "'any.weight' is no"),
        (lambda place: torch.save({}, place / "consolidated.01.pth"), "part 1 has no 'tok_embeddings.weight'"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, sentences: Path, harm: object, message: str) -> None:
    write_meta(tmp_path / "7B", llama(8), 2, sentences)
    harm(tmp_path / "7B")  # type: ignore[operator]
    with pytest.raises(ModelError, match=message):
        run("convert-llama", str(tmp_path / "7B"), str(tmp_path / "output"))
    assert not (tmp_path / "output").exists()
