"""Meta's layout, made from a small random Llama in 1, 2 and 4 parts, and back: the same logits, the same ids."""

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from data_prep.errors import ConfigError, ModelError
from tests.ray_apps.weights.published import llama, write_hub, write_meta
from tests.ray_apps.weights.test_delta import run

TEXTS = ["hello world 42", "the  fox\n\njumps é漢", " lead", "   x", "", "\ttab"]


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
    assert again.config.max_position_embeddings == (2048 if num_key_value_heads == 8 else 4096)
    assert again.config.num_key_value_heads == num_key_value_heads
    assert again.generation_config.eos_token_id == 2


@pytest.mark.parametrize(("dtype", "context"), [(torch.float16, 2048), (torch.bfloat16, 4096)])
def test_llama_2_reads_more_than_llama(
    tmp_path: Path, sentences: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, context: int
) -> None:
    """One was published in fp16, the other in bf16. From within the directory, with the tokenizer above it."""
    write_meta(tmp_path / "7B", llama().to(dtype), 1, sentences)
    monkeypatch.chdir(tmp_path / "7B")
    run("convert-llama", ".", str(tmp_path / "output"))
    assert json.loads((tmp_path / "output" / "config.json").read_text())["max_position_embeddings"] == context


def with_part(place: Path, name: str, tensor: torch.Tensor) -> None:
    path = place / "consolidated.01.pth"
    torch.save({**torch.load(path), name: tensor}, path)


def with_param(place: Path, **params: object) -> None:
    path = place / "params.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **params}))


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


@pytest.mark.parametrize("has_pad", [False, True])
def test_a_slow_tokenizer_gets_a_fast_one_with_the_same_ids(tmp_path: Path, sentences: Path, has_pad: bool) -> None:
    """And a space before what follows a special token, as Vicuna was trained; `[PAD]` as in its first version."""
    model = llama(vocab_size=381 if has_pad else 380)
    old = write_hub(tmp_path / "old", dict(model.state_dict()), model.config, sentences, "bin-shards")
    run("to-safetensors", old, str(tmp_path / "output"), "--template", "vicuna_v1.1")
    made = AutoTokenizer.from_pretrained(tmp_path / "output")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentences))
    for text in TEXTS:
        assert made(text).input_ids == [1, *reference.encode(text)]
    assert made("one</s>two").input_ids == [1, *reference.encode("one"), 2, *reference.encode("two")]
    assert made.pad_token_id == (380 if has_pad else None)
    chat = [{"role": "user", "content": "hello"}]
    prompt = made.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("questions. USER: hello ASSISTANT:")
    assert json.loads((tmp_path / "output" / "generation_config.json").read_text())["eos_token_id"] == 2


def test_no_special_token_stays_empty(tmp_path: Path, sentences: Path) -> None:
    """As they are in early conversions."""
    model = llama()
    old = write_hub(tmp_path / "old", dict(model.state_dict()), model.config, sentences, "bin")
    empty = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "")
    (tmp_path / "old" / "special_tokens_map.json").write_text(json.dumps(empty))
    settings = json.loads((tmp_path / "old" / "tokenizer_config.json").read_text())
    (tmp_path / "old" / "tokenizer_config.json").write_text(json.dumps({**settings, **empty}))
    (tmp_path / "old" / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "do_sample": true}')
    run("to-safetensors", old, str(tmp_path / "output"), "--template", "vicuna_v1.1")
    made = AutoTokenizer.from_pretrained(tmp_path / "output")
    assert (made.bos_token, made.eos_token, made.unk_token) == ("<s>", "</s>", "<unk>")
    assert json.loads((tmp_path / "output" / "generation_config.json").read_text())["top_p"] == 0.6


def test_special_tokens_of_its_own_stay(tmp_path: Path, sentences: Path) -> None:
    """Such as ChatML's, which were added; and what was added is text if it is not special."""
    model = llama(vocab_size=382)
    old = write_hub(tmp_path / "old", dict(model.state_dict()), model.config, sentences, "bin")
    (tmp_path / "old" / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 380, "<think>": 381}))
    special = {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}, "unk_token": "<unk>"}
    (tmp_path / "old" / "special_tokens_map.json").write_text(json.dumps(special))
    run("to-safetensors", old, str(tmp_path / "output"))
    made = AutoTokenizer.from_pretrained(tmp_path / "output")
    assert (made.bos_token_id, made.eos_token_id, len(made)) == (1, 380, 382)
    assert made.decode([381, 380], skip_special_tokens=True) == "<think>"
    special["eos_token"] = "<|end|>"
    (tmp_path / "old" / "special_tokens_map.json").write_text(json.dumps(special))
    with pytest.raises(ModelError, match=r"eos_token: '<\|end\|>' is neither in tokenizer.model nor in added_tokens"):
        run("to-safetensors", old, str(tmp_path / "again"))


def test_what_is_wrong_with_a_tokenizer_or_template_is_said(tmp_path: Path, sentences: Path) -> None:
    model = llama(vocab_size=381)
    old = write_hub(tmp_path / "old", dict(model.state_dict()), model.config, sentences, "bin")
    output = str(tmp_path / "output")
    with pytest.raises(ConfigError, match="template: 'vicuna' is unknown; valid: chatml"):
        run("to-safetensors", old, output, "--template", "vicuna")
    with pytest.raises(ConfigError, match=r"template: 'chatml' needs the special tokens <\|im_start\|>"):
        run("to-safetensors", old, output, "--template", "chatml")
    (tmp_path / "old" / "added_tokens.json").write_text('{"[PAD]": 400}')
    with pytest.raises(ModelError, match=r"added_tokens\.json: '\[PAD\]' has the id 400, which is not the next one"):
        run("to-safetensors", old, output)
    (tmp_path / "old" / "added_tokens.json").write_text("{")
    with pytest.raises(ModelError, match=r"added_tokens\.json is not readable"):
        run("to-safetensors", old, output)
    assert not (tmp_path / "output").exists()


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
        (lambda place: (place / "params.json").write_text("{}"), "params.json: dim is missing"),
        (lambda place: with_param(place, n_heads="x"), "params.json: n_heads: 'x' is not valid; expected a number"),
        (lambda place: with_param(place, n_heads=7), "params.json: n_heads: 7 does not divide dim"),
        (lambda place: with_param(place, norm_eps="x"), "params.json: norm_eps: 'x' is not valid"),
        (lambda place: with_param(place, n_layers=3), "the parts have no 'layers.2.attention.wk.weight'"),
        (lambda place: with_param(place, n_layers=1), "params.json has no place for 'layers.1."),
        (lambda place: with_param(place, dim=64), r"'tok_embeddings.weight' of 2 parts together is \[380, 32\]"),
        (lambda place: (place / "consolidated.01.pth").unlink(), "a part is missing, or is of another model"),
        (lambda place: with_param(place, rope_theta="x"), "params.json: rope_theta: 'x' is not valid"),
        (lambda place: with_part(place, "layers.0.attention.wq.weight", torch.ones(16, 31)), "of part 1 is float32"),
        (lambda place: with_part(place, "layers.0.attention.wo.weight", torch.ones(512)), "of part 1 is float32"),
        (lambda place: with_part(place, "output.weight", torch.ones(190, 32).bfloat16()), "of part 1 is bfloat16"),
        (lambda place: with_part(place, "more.weight", torch.ones(1)), "has no place for 'more.weight'"),
        (lambda place: (place / "consolidated.00.pth").unlink(), "consolidated.00.pth is not there"),
        (lambda place: (place / "consolidated.01.pth").write_bytes(b""), "consolidated.01.pth: it is cut off, damaged"),
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
