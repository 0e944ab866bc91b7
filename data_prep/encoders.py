"""A tokenizer's own rules without its special tokens: typed text becomes ordinary tokens, whatever it spells."""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from data_prep.byte_level import BYTE_LEVEL
from data_prep.chat_template import SpecialTokens
from data_prep.word_encoder import WordEncoder, can_be_cut, can_be_cut_at_lines


class Special(NamedTuple):
    """A special token: its id and spelling, and whether it swallows the white space on its left or right."""

    id: int
    content: str
    lstrip: bool
    rstrip: bool


class Encoders:
    """Three copies of one tokenizer that never read special tokens out of text.

    They differ in whether a word mark is put before the text: `first` at the start of a text, `later` after a special
    token, `inner` in the middle of a text. `specials` are all its special tokens by their spelling, `for_templates`
    those a template uses. `words` encodes faster, where the tokenizer allows it.

    Made of a description in JSON, which `tokenizer.describe` writes: `tokenizer`, as in tokenizer.json; `specials`;
    `eos`; `bos`, empty if the tokenizer does not open a text by itself.
    """

    def __init__(self, description_json: str) -> None:
        whole = json.loads(description_json)
        description = whole["tokenizer"]
        description.update(truncation=None, padding=None, post_processor=None)
        ordinary = cache(_ordinary)  # the three often are one
        self.first = ordinary(json.dumps(description))
        self.later = ordinary(json.dumps(_with(description, {"prepend_scheme": ("first", "never")})))
        self.inner = ordinary(json.dumps(_without_prefix(description)))
        self.specials = {token.content: token for token in (Special(*values) for values in whole["specials"])}
        self.for_templates = SpecialTokens(eos=whole["eos"], bos=whole["bos"])
        self.words = self._word_encoder(description) if can_be_cut(description) else None
        self._missing = _missing_bytes(description)

    def _word_encoder(self, description: Mapping[str, Any]) -> WordEncoder:
        encoders = {"first": self.first, "later": self.later, "inner": self.inner}
        return WordEncoder(encoders, cuts_lines=can_be_cut_at_lines(description))

    def has_tokens_for(self, text: str) -> bool:
        """Whether there is a token for every byte of `text`. A byte-level tokenizer leaves out bytes it lacks."""
        return not self._missing.search(text.encode())


def _missing_bytes(description: Mapping[str, Any]) -> re.Pattern[bytes]:
    """Matches a byte for which a byte-level vocabulary has no token; nothing for other kinds of tokenizer."""
    byte_level = '"ByteLevel"' in json.dumps(description["pre_tokenizer"])
    missing = [byte for token, byte in BYTE_LEVEL.items() if byte_level and token not in description["model"]["vocab"]]
    return re.compile(b"[" + re.escape(bytes(missing)) + b"]" if missing else rb"(?!)")


def _ordinary(description: str) -> Tokenizer:
    backend = Tokenizer.from_str(description)
    backend.encode_special_tokens = True
    return backend


def _replace(node: Any, changes: Mapping[str, tuple[Any, Any]]) -> Any:
    """Copy a JSON tree, changing the value of each key in `changes` from the first to the second."""
    if isinstance(node, list):
        return [_replace(item, changes) for item in node]
    if not isinstance(node, dict):
        return node
    copy = {key: _replace(value, changes) for key, value in node.items()}
    for key, (old, new) in changes.items():
        if key in copy and copy[key] == old:
            copy[key] = new
    return copy


def _without_prefix(description: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer that puts no space or word mark before a text."""
    changed = _with(description, {"add_prefix_space": (True, False)})
    for scheme in ("first", "always"):
        changed["pre_tokenizer"] = _replace(changed["pre_tokenizer"], {"prepend_scheme": (scheme, "never")})
    return {**changed, "normalizer": _drop_prepend(description["normalizer"])}


def _with(description: dict[str, Any], changes: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """The tokenizer with `changes` to how it marks words."""
    return {**description, **{part: _replace(description[part], changes) for part in ("pre_tokenizer", "decoder")}}


def _drop_prepend(normalizer: Any) -> Any:
    if normalizer is None or normalizer["type"] == "Prepend":
        return None
    if normalizer["type"] == "Sequence":
        kept = [inner for inner in map(_drop_prepend, normalizer["normalizers"]) if inner is not None]
        return {**normalizer, "normalizers": kept}
    return normalizer
