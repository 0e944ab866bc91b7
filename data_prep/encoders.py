"""A tokenizer's own rules without its special tokens: typed text becomes ordinary tokens, whatever it spells."""

import json
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from data_prep.byte_level import BYTE_LEVEL


class Encoders:
    """Three copies of one tokenizer that never read special tokens out of text.

    They differ in whether a word mark is put before the text: `first` at the start of a text, `later` after a special
    token, `inner` in the middle of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        description.update(truncation=None, padding=None, post_processor=None)
        ordinary = cache(_ordinary)  # the three often are one
        self.first = ordinary(json.dumps(description))
        self.later = ordinary(json.dumps(_with(description, {"prepend_scheme": ("first", "never")})))
        self.inner = ordinary(json.dumps(_without_prefix(description)))
        self.tokens = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.ids = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.missing = _missing_bytes(description)


@lru_cache(maxsize=8)
def encoders_of(tokenizer: PreTrainedTokenizerBase) -> Encoders:
    """The encoders of a tokenizer, made once."""
    return Encoders(tokenizer)


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
