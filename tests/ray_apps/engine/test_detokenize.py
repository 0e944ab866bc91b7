import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from data_prep.errors import ModelError
from ray_apps.engine.detokenize import Detokenizer, Vocabulary, read_vocabulary
from tests import tiny

MADE = {name: make() for name, make in tiny.TOKENIZERS.items()}
BYTES = Vocabulary(tuple(bytes([byte]) for byte in range(256)))
HARD = [
    "🙂",
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈",
    "é",
    "é",
    "你好",
    "안녕",
    "नमस्ते",
    "𝔘𝔫𝔦",
    "\u200d",
    "�",
    "</s>",
    "<0x41>",
    "▁",
    "###",
    "\n",
    " ",
    "  a",
]
texts = st.lists(st.one_of(st.sampled_from(HARD), st.text(max_size=6))).map("".join)
chunked_stops = st.lists(st.sampled_from(["###", "##\n", "🙂", "ab", "b#", "\n\n", "a", "你"]), max_size=3)


def stream(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*map(detokenizer.push, ids), detokenizer.finish()]


def is_whole(text: str) -> bool:
    return text.encode("utf-8", "strict").decode() == text


@pytest.mark.parametrize("name", MADE)
@given(text=texts)
def test_the_pieces_are_the_text_that_the_tokenizer_decodes(name: str, text: str) -> None:
    tokenizer: PreTrainedTokenizerFast = MADE[name]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pieces = stream(Detokenizer(read_vocabulary(tokenizer.backend_tokenizer)), ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", MADE)
@given(ids=st.lists(st.integers(min_value=0, max_value=900)))
def test_no_sequence_of_tokens_gives_a_broken_character(name: str, ids: list[int]) -> None:
    detokenizer = Detokenizer(read_vocabulary(MADE[name].backend_tokenizer))
    assert all(is_whole(piece) and "�" not in piece for piece in stream(detokenizer, ids))


@given(text=texts)
def test_each_piece_is_one_whole_character_when_tokens_are_bytes(text: str) -> None:
    pieces = [piece for piece in stream(Detokenizer(BYTES), list(text.encode())) if piece]
    assert pieces == list(text)


def test_a_character_cut_off_at_the_end_is_left_out() -> None:
    assert "".join(stream(Detokenizer(BYTES), list("a🙂".encode()[:-1]))) == "a"


def test_a_replacement_character_that_the_model_means_is_kept() -> None:
    assert "".join(stream(Detokenizer(BYTES), list("a�b".encode()))) == "a�b"


def ends_at_first_stop(text: str, stops: list[str]) -> str:
    """The rule in its simplest form: read character by character until some stop string is complete."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@given(text=st.text(alphabet="ab#\n🙂你", max_size=30), stops=chunked_stops, data=st.data())
def test_text_ends_before_the_first_completed_stop_string_however_tokens_cut_it(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text.encode())))))
    encoded = text.encode()
    tokens = [encoded[start:end] for start, end in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    detokenizer = Detokenizer(Vocabulary(tuple(tokens)), stops)
    pieces = stream(detokenizer, list(range(len(tokens))))
    assert "".join(pieces) == ends_at_first_stop(text, stops)
    assert detokenizer.stopped == (ends_at_first_stop(text, stops) != text)


@given(text=st.text(alphabet="ab#", max_size=30), stops=chunked_stops)
def test_text_that_cannot_become_a_stop_string_is_not_held_back(text: str, stops: list[str]) -> None:
    detokenizer = Detokenizer(BYTES, stops)
    sent = ""
    for index, token in enumerate(text.encode(), start=1):
        sent += detokenizer.push(token)
        if detokenizer.stopped:
            return
        held = text[len(sent) : index]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(("stop", "text"), [("a" * 1000, "a" * 999 + "c"), ("ab" * 499 + "cc", "ab" * 520)])
def test_the_work_grows_with_the_text_whatever_may_become_a_stop_string(stop: str, text: str) -> None:
    detokenizer, calls = Detokenizer(BYTES, [stop]), Counter[str]()
    sys.setprofile(lambda frame, event, argument: calls.update([event]))
    try:
        for token in text.encode():
            detokenizer.push(token)
    finally:
        sys.setprofile(None)
    assert calls["c_call"] < 20 * len(text)


def test_special_tokens_give_no_text() -> None:
    tokenizer = tiny.byte_level()
    detokenizer = Detokenizer(read_vocabulary(tokenizer.backend_tokenizer))
    assert "".join(stream(detokenizer, tokenizer("<|im_start|>a<|im_end|>").input_ids)) == "a"


def test_a_token_added_to_the_vocabulary_is_its_own_text() -> None:
    tokenizer = tiny.byte_level()
    tokenizer.add_tokens(["<think é>"])
    detokenizer = Detokenizer(read_vocabulary(tokenizer.backend_tokenizer))
    assert "".join(stream(detokenizer, tokenizer("a<think é>").input_ids)) == "a<think é>"


def test_a_space_before_the_answer_is_dropped_once_where_the_template_wrote_it() -> None:
    assert "".join(stream(Detokenizer(BYTES, strip_space=True), list(b"  a b"))) == " a b"
    assert "".join(stream(Detokenizer(BYTES), list(b" a"))) == " a"


def test_a_tokenizer_that_drops_the_space_before_a_text_does_so_unless_told_not_to() -> None:
    tokenizer = tiny.sentencepiece_like(legacy=False)
    vocabulary = read_vocabulary(tokenizer.backend_tokenizer)
    token_ids = tokenizer("a b", add_special_tokens=False).input_ids
    assert "".join(stream(Detokenizer(vocabulary), token_ids)) == "a b"
    assert "".join(stream(Detokenizer(vocabulary, strip_space=False), token_ids)) == " a b"


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece(), decoders.CTC()])
def test_another_kind_of_tokenizer_is_refused(decoder: decoders.Decoder | None) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0}))
    if decoder is not None:
        backend.decoder = decoder
    with pytest.raises(ModelError, match="decoder"):
        read_vocabulary(backend)
