"""Encoding word by word with a memory: natural text repeats its words, and to look one up costs less than to encode it.

Exact, not an approximation. A text is cut only before a single space between two characters that surely are no white
space, or before a line end after such a character, and only for tokenizers that are known to have a token boundary
there, whatever stands around it:

- byte-pair encoding whose vocabulary has no token with such a space inside (each merge makes a token of the vocabulary,
  Sennrich et al. 2016, so none reaches over it);
- no normalizer but those that write spaces as marks;
- none of the pre-tokenizers but those that cut there or nowhere.

For all others there is no word encoder, and texts are encoded whole.
"""

import re
import threading
from array import array
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

_INK = "!-~\u00a1-\u167f\u3001-\ud7ff\U00010000-\U0010ffff"
CUT = re.compile(f" (?<=[{_INK}] )(?=[{_INK}])")
"""Matches the space before which a text may be cut."""
_LINE_CUT = re.compile(f"\n(?<=[{_INK}]\n)")

_MOST_WORDS = 1 << 19
_LONGEST = 32  # characters; what is longer hardly comes again
_TOKEN_OVER_CUT = {
    "Ġ": re.compile("[^\u0100-\u0120]\u0120"),  # bytes up to that of the space
    "▁": re.compile(r"[^▁\s]▁"),
}
_TOKEN_OVER_LINE_CUT = re.compile(r"[^▁\s]\n")
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = (_PATTERN % "{1,3}", _PATTERN % "")  # Llama 3; Qwen 2 and 3


_MARKS = {"first": "\0", "later": "\1", "inner": ""}  # characters that no word after a cut starts with
_PLACES = {mark: place for place, mark in _MARKS.items()}


class Stretch(NamedTuple):
    """Text to encode. `place`: "first" at the start of a text, "later" after a special token, "inner" after a cut.

    Of an inner stretch the space at its start is left out.
    """

    text: str
    place: str


class WordEncoder:
    """Encodes stretches of text. Safe to use from several threads."""

    def __init__(self, encoders: Mapping[str, Tokenizer], *, cuts_lines: bool) -> None:
        self._encoders = encoders
        self._cuts_lines = cuts_lines
        self._lock = threading.Lock()
        self._ids: dict[str, bytes] = {}  # by words as `_words` gives them

    def encode(self, stretches: Sequence[Stretch]) -> list[npt.NDArray[np.int32]]:
        """Ids of each stretch, int32 `[tokens]`."""
        words = [self._words(stretch) for stretch in stretches]
        with self._lock:
            if len(self._ids) > _MOST_WORDS:
                self._ids.clear()
            unknown = set(chain.from_iterable(words)).difference(self._ids)
            self._learn(unknown)
            joined = [b"".join(map(self._ids.__getitem__, row)) for row in words]
            for word in unknown:
                if len(word) > _LONGEST:
                    del self._ids[word]
        return [np.frombuffer(row, np.int32) for row in joined]

    def _words(self, stretch: Stretch) -> list[str]:
        """The words of a stretch: the first marked by its place, others without the space they start with."""
        if self._cuts_lines:
            first, *others = _LINE_CUT.split(stretch.text)
            words = CUT.split(first)
            for line in others:
                line_words = CUT.split(line)
                line_words[0] = f"\n{line_words[0]}"
                words += line_words
        else:
            words = CUT.split(stretch.text)
        words[0] = _MARKS[stretch.place] + words[0]
        return words

    def _learn(self, words: Collection[str]) -> None:
        texts: dict[str, dict[str, str]] = {place: {} for place in _MARKS}
        for word in words:
            place = _PLACES.get(word[0], "inner")
            texts[place][word] = word[1:] if place != "inner" else word if word[0] == "\n" else f" {word}"
        for place, of_place in texts.items():
            encodings = self._encoders[place].encode_batch_fast([*of_place.values()], add_special_tokens=False)
            for word, encoding in zip(of_place, encodings, strict=True):
                self._ids[word] = array("i", encoding.ids).tobytes()


def can_be_cut(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the tokenizer, as in tokenizer.json, has a token boundary wherever `CUT` matches."""
    model = tokenizer["model"]
    if model["type"] != "BPE" or model.get("dropout"):
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    steps = list(_steps(tokenizer["pre_tokenizer"], "pretokenizers"))
    by_bytes = any(step["type"] == "ByteLevel" for step in steps)
    if model.get("ignore_merges") and not by_bytes:
        return False  # a whole text could be a token that no merge makes
    mark = "Ġ" if by_bytes else "▁"
    return (
        mark in model["vocab"]  # unknown characters may be fused
        and all(_keeps_cuts(step, alone=len(steps) == 1) for step in steps)
        and all(_writes_marks(step) for step in _steps(tokenizer["normalizer"], "normalizers"))
        and not any(_reaches_over(token) for token in tokenizer["added_tokens"] if not token["special"])
        and not any(_TOKEN_OVER_CUT[mark].search(token) for token in model["vocab"])
    )


def can_be_cut_at_lines(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer that can be cut has a token boundary before every line end after ink, too."""
    model, steps = tokenizer["model"], _steps(tokenizer["pre_tokenizer"], "pretokenizers")
    if any(step["type"] == "ByteLevel" for step in steps):
        return all(step.get("use_regex", step["type"] == "Digits") for step in steps)
    known = "\n" in model["vocab"] or (model.get("byte_fallback") and "<0x0A>" in model["vocab"])
    return bool(known) and not any(_TOKEN_OVER_LINE_CUT.search(token) for token in model["vocab"])


def _steps(node: Any, parts: str) -> list[Any]:
    if node is None:
        return []
    return [step for inner in node[parts] for step in _steps(inner, parts)] if node["type"] == "Sequence" else [node]


def _keeps_cuts(pre_tokenizer: Mapping[str, Any], *, alone: bool) -> bool:
    if pre_tokenizer["type"] == "Split":
        pattern = pre_tokenizer["pattern"].get("Regex")
        return pattern in _PATTERNS and pre_tokenizer["behavior"] == "Isolated" and not pre_tokenizer["invert"]
    if pre_tokenizer["type"] == "Metaspace":
        return bool(alone and pre_tokenizer["replacement"] == "▁")
    if pre_tokenizer["type"] == "ByteLevel":
        return bool(alone or not pre_tokenizer["add_prefix_space"])  # or it would be added to every part
    return bool(pre_tokenizer["type"] == "Digits")


def _writes_marks(normalizer: Mapping[str, Any]) -> bool:
    if normalizer["type"] == "Prepend":
        return True
    return bool(
        normalizer["type"] == "Replace" and normalizer["pattern"] == {"String": " "} and normalizer["content"] == "▁"
    )


def _reaches_over(token: Mapping[str, Any]) -> bool:
    return bool(re.search(r"\s", token["content"]) or token["lstrip"] or token["rstrip"] or token["single_word"])
