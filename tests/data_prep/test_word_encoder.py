"""A text cut into words gives the ids it gives whole, whatever it holds; where that is not certain, nothing is cut."""

import json
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_prep.encoders import Encoders
from data_prep.tokenizer import encoders_of
from data_prep.word_encoder import _PATTERNS, Stretch, can_be_cut
from tests import tiny


def split_by(pattern: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny.byte_level()
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer


def with_digits() -> PreTrainedTokenizerFast:
    tokenizer = tiny.byte_level()
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def with_prefix() -> PreTrainedTokenizerFast:
    tokenizer = tiny.byte_level()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def lines_apart() -> PreTrainedTokenizerFast:
    with patch.object(tiny, "CORPUS", [line for text in tiny.CORPUS for line in text.splitlines()]):
        return tiny.sentencepiece_like(legacy=True)


CUTTABLE: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    **{name: make for name, make in tiny.TOKENIZERS.items() if name != "sentencepiece-straddling"},
    "sentencepiece-lines": lines_apart,
    "llama-3": lambda: split_by(_PATTERNS[0]),
    "qwen": lambda: split_by(_PATTERNS[1]),
    "digits": with_digits,
    "prefix": with_prefix,
    "lacks-bytes": lambda: tiny.byte_level(lacks=b"~\xf0"),
}
SPACES = [" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "\u200b", "\u1680", "\x1c"]
WORDS = [
    "the",
    "don't",
    "I'LL",
    "123",
    "4",
    "x=1;",
    "...",
    "end.\n",
    "é",
    "e\u0301",
    "你好",
    "😀",
    "<s>",
    "</s>",
    "▁",
    "Ġ",
]
typed = st.lists(
    st.one_of(
        st.sampled_from(SPACES),
        st.sampled_from(WORDS),
        st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=3),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoders]:
    return {kind: encoders_of(make()) for kind, make in CUTTABLE.items()}


@pytest.mark.parametrize("kind", CUTTABLE)
@given(texts=st.lists(typed, max_size=3))
def test_words_give_the_ids_of_the_whole(kind: str, encoders: dict[str, Encoders], texts: list[str]) -> None:
    of = encoders[kind]
    assert of.words is not None
    stretches = [Stretch(text, place) for text in texts for place in ("first", "later")]
    wanted = [getattr(of, place).encode(text, add_special_tokens=False).ids for text, place in stretches]
    assert [ids.tolist() for ids in of.words.encode(stretches)] == wanted


@pytest.mark.parametrize("kind", CUTTABLE)
@given(before=typed, after=typed)
def test_what_follows_a_cut_is_encoded_by_itself(
    kind: str, encoders: dict[str, Encoders], before: str, after: str
) -> None:
    of, before, after = encoders[kind], f"{before}a", f"b{after}"
    assert of.words is not None
    parts = of.words.encode([Stretch(before, "first"), Stretch(after, "inner")])
    whole = of.first.encode(f"{before} {after}", add_special_tokens=False).ids
    assert [*parts[0].tolist(), *parts[1].tolist()] == whole


def test_some_are_cut_at_line_ends_too(encoders: dict[str, Encoders]) -> None:
    lines = {kind for kind, of in encoders.items() if of.words is not None and of.words._cuts_lines}
    assert lines == {"byte-level", "byte-level-gpt2", "sentencepiece-lines", "digits", "prefix", "lacks-bytes"}


def test_long_words_are_not_remembered() -> None:
    words = encoders_of(tiny.byte_level()).words
    assert words is not None
    first = words.encode([Stretch("a " + "long" * 20, "first")])[0]
    assert words.encode([Stretch("a " + "long" * 20, "first")])[0].tolist() == first.tolist()
    assert not any("longlong" in str(word) for word in words._ids)


def described(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(tiny.byte_level().backend_tokenizer.to_str())
    for path, value in changes.items():
        node, *keys = path.split("__")
        place = whole
        for key in [node, *keys][:-1]:
            place = place[key]
        place[[node, *keys][-1]] = value
    return whole


ADDED = {"id": 700, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False}


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "NFC"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}},
        {"model__dropout": 0.1},
        {"model__type": "Unigram"},
        {"model__end_of_word_suffix": "</w>"},
        {"model__vocab": {"Ġ": 0, "aĠb": 1}},
        {"model__vocab": {"a": 0}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": ".+"}, "behavior": "Isolated", "invert": False}},
        {"added_tokens": [{**ADDED, "content": "two words"}]},
        {"added_tokens": [{**ADDED, "content": "END.\n"}]},
        {"added_tokens": [{**ADDED, "content": "word", "lstrip": True}]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_others_are_not_cut(changes: dict[str, Any]) -> None:
    assert can_be_cut(described())
    assert can_be_cut(described(added_tokens=[{**ADDED, "content": "word"}]))
    assert not can_be_cut(described(**changes))
