"""From text to ids: one function for training rows and served prompts.

A special token enters as an id, only where a template wrote it. The same spelling typed by a person is encoded as
ordinary text, so a typed text can neither end a turn nor open one.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Encoding, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data_prep.byte_level import BYTE_LEVEL
from data_prep.chat_template import ChatTemplate, Rendered, SpecialTokens
from data_prep.errors import ConfigError, ModelError
from data_prep.model_template import render_messages
from data_prep.storage import TOKENIZER_FILES, local_model

IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """`input_ids`: int32 `[tokens]`. `weights`: float32 `[tokens]`, the loss weight of each token as a target."""

    input_ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """`input_ids` where a token is trained, `IGNORE_INDEX` elsewhere. int32 `[tokens]`."""
        return mask_untrained(self.input_ids, self.weights)


def mask_untrained(input_ids: npt.NDArray[np.int32], weights: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Labels of a row: `input_ids` where `weights` > 0, `IGNORE_INDEX` elsewhere. int32 `[tokens]`."""
    return np.where(weights > 0, input_ids, IGNORE_INDEX).astype(np.int32)


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `model`: a directory, an `s3://` path or a hub id.

    Raises:
        ModelError: there is none, it has no end token, or it is not of the fast kind (only those give offsets).
    """
    directory = local_model(model, TOKENIZER_FILES)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except StrictDataclassError as error:
        raise ModelError(f"model {model!r}: config.json: {error.__cause__ or error}") from None
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {model!r}: no usable tokenizer: {str(error).splitlines()[0]}") from None
    if not tokenizer.is_fast:
        raise ModelError(f"model {model!r}: its tokenizer has no fast version (tokenizer.json)")
    if tokenizer.eos_token is None:
        raise ModelError(f"model {model!r}: its tokenizer names no end token (eos_token)")
    return tokenizer


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """What makes ids comparable: a hash of vocabulary, merges, normalisation and special tokens. 16 hex digits."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("truncation", "padding"):
        description.pop(state, None)
    specials = {"bos": tokenizer.bos_token, "eos": tokenizer.eos_token}
    text = json.dumps([description, specials], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """The tokenizer's end token, and its begin token if it opens every text with one by itself."""
    opened = tokenizer("a").input_ids
    opens_with_bos = bool(opened) and tokenizer.bos_token_id is not None and opened[0] == tokenizer.bos_token_id
    return SpecialTokens(eos=tokenizer.eos_token, bos=tokenizer.bos_token if opens_with_bos else "")


def check_template(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a template whose special tokens the tokenizer lacks.

    Raises:
        ConfigError: naming the template and the missing tokens.
    """
    known = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    missing = [token for token in template.required_tokens if token not in known]
    if missing:
        raise ConfigError(
            f"data.template: {template.name!r} needs the special tokens {', '.join(missing)}, which the tokenizer lacks"
        )


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches the spelling of any special token, the longest first."""
    spellings = sorted(_encoders(tokenizer).tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spellings)) if spellings else r"(?!)")


def has_tokens_for(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the tokenizer has a token for every byte of `text`. A byte-level one leaves out bytes it lacks."""
    return not _encoders(tokenizer).missing.search(text.encode())


def encode_chats(tokenizer: PreTrainedTokenizerBase, batch: Sequence[Rendered]) -> list[EncodedChat]:
    """Encode rendered conversations in one batch.

    Text between two special tokens is encoded as one piece, as transformers would. Where a token would straddle the
    edge of a span, that piece is cut at its edges, so that a span always is whole tokens.
    """
    encoders = _encoders(tokenizer)
    parts = [list(_parts(encoders, rendered)) for rendered in batch]
    encodings = encoders.encode_texts([part for chat in parts for part in chat if not part.special])
    return [_assemble(encoders, rendered, chat, encodings) for rendered, chat in zip(batch, parts, strict=True)]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Ids of `messages` rendered by the tokenizer's own chat template, ready for the assistant's answer.

    Raises:
        ModelError: the tokenizer has no chat template.
        ValueError: the template refuses the messages; the message is the template's own.
    """
    rendered = render_messages(tokenizer, messages, special_pattern(tokenizer))
    ids: list[int] = encode_chats(tokenizer, [rendered])[0].input_ids.tolist()
    return ids


@dataclass(frozen=True, slots=True)
class _Part:
    """Characters `[start, end)` of a rendered text: one special token, or the text between two of them."""

    text: str
    start: int
    end: int
    special: bool


class _Encoders:
    """Three copies of one tokenizer that never read special tokens out of text.

    They differ in whether a word mark is put before the text: `first` at the start of a text, `later` after a special
    token, `inner` in the middle of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        description = json.loads(tokenizer.backend_tokenizer.to_str())
        description.update(truncation=None, padding=None, post_processor=None)
        self.first = _ordinary(description)
        self.later = _ordinary(_replace(description, {"prepend_scheme": ("first", "never")}))
        self.inner = _ordinary(_without_prefix(description))
        self.tokens = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.ids = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.missing = _missing_bytes(description)

    def encode_texts(self, parts: Sequence[_Part]) -> Iterator[Encoding]:
        """Encode each part as `first` or `later`, in batches; results in the order of `parts`."""
        opening = [part.text for part in parts if part.start == 0]
        others = [part.text for part in parts if part.start != 0]
        first = iter(self.first.encode_batch(opening, add_special_tokens=False))
        later = iter(self.later.encode_batch(others, add_special_tokens=False))
        return (next(first) if part.start == 0 else next(later) for part in parts)


@lru_cache(maxsize=8)
def _encoders(tokenizer: PreTrainedTokenizerBase) -> _Encoders:
    return _Encoders(tokenizer)


def _missing_bytes(description: Mapping[str, Any]) -> re.Pattern[bytes]:
    """Matches a byte for which a byte-level vocabulary has no token; nothing for other kinds of tokenizer."""
    byte_level = '"ByteLevel"' in json.dumps(description["pre_tokenizer"])
    missing = [byte for token, byte in BYTE_LEVEL.items() if byte_level and token not in description["model"]["vocab"]]
    return re.compile(b"[" + re.escape(bytes(missing)) + b"]" if missing else rb"(?!)")


def _ordinary(description: Any) -> Tokenizer:
    backend = Tokenizer.from_str(json.dumps(description))
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
    changed = {
        part: _replace(description[part], {"add_prefix_space": (True, False)}) for part in ("pre_tokenizer", "decoder")
    }
    for scheme in ("first", "always"):
        changed["pre_tokenizer"] = _replace(changed["pre_tokenizer"], {"prepend_scheme": (scheme, "never")})
    return {**description, **changed, "normalizer": _drop_prepend(description["normalizer"])}


def _drop_prepend(normalizer: Any) -> Any:
    if normalizer is None or normalizer["type"] == "Prepend":
        return None
    if normalizer["type"] == "Sequence":
        kept = [inner for inner in map(_drop_prepend, normalizer["normalizers"]) if inner is not None]
        return {**normalizer, "normalizers": kept}
    return normalizer


def _parts(encoders: _Encoders, rendered: Rendered) -> Iterator[_Part]:
    """Cut a rendered text at its special tokens, each with the white space its tokenizer lets it swallow."""
    text, end = rendered.text, 0
    for start, stop in rendered.specials:
        token = encoders.tokens.get(text[start:stop])
        if token is None:
            continue
        outer, after = start, stop
        while token.lstrip and outer > end and text[outer - 1].isspace():
            outer -= 1
        while token.rstrip and after < len(text) and text[after].isspace():
            after += 1
        if outer > end:
            yield _Part(text[end:outer], end, outer, special=False)
        yield _Part(token.content, start, stop, special=True)
        end = after
    if end < len(text):
        yield _Part(text[end:], end, len(text), special=False)


def _assemble(
    encoders: _Encoders, rendered: Rendered, parts: Sequence[_Part], encodings: Iterator[Encoding]
) -> EncodedChat:
    ids: list[int] = []
    weights: list[float] = []
    for part in parts:
        inside = [span for span in rendered.spans if span.start < part.end and span.end > part.start]
        if part.special:
            ids.append(encoders.ids[part.text])
            weights.append(inside[0].weight if inside else 0.0)
            continue
        encoding = next(encodings)
        edges = [(max(s.start, part.start) - part.start, min(s.end, part.end) - part.start, s.weight) for s in inside]
        runs = _token_runs(encoding, edges, len(part.text))
        if runs is None:
            part_ids, part_weights = _encode_cut(encoders, part, edges)
            ids += part_ids
            weights += part_weights
            continue
        part_weights = [0.0] * len(encoding.ids)
        for start, end, weight in runs:
            part_weights[start:end] = [weight] * (end - start)
        ids += encoding.ids
        weights += part_weights
    return EncodedChat(np.array(ids, np.int32), np.array(weights, np.float32))


def _token_runs(
    encoding: Encoding, edges: Sequence[tuple[int, int, float]], length: int
) -> list[tuple[int, int, float]] | None:
    """Turn character runs into token runs; None if a token straddles an edge or an edge lies in no token."""
    runs = []
    for start, end, weight in edges:
        first, last = _token_at(encoding, start, length), _token_at(encoding, end, length)
        if first is None or last is None:
            return None
        runs.append((first, last, weight))
    return runs


def _token_at(encoding: Encoding, char: int, length: int) -> int | None:
    """Index of the token that starts at character `char`; None if there is none."""
    if char == length:
        return len(encoding.ids)
    token = encoding.char_to_token(char)
    chars = None if token is None else encoding.token_to_chars(token)
    return token if chars is not None and chars[0] == char else None


def _encode_cut(
    encoders: _Encoders, part: _Part, edges: Sequence[tuple[int, int, float]]
) -> tuple[list[int], list[float]]:
    """Encode a text in pieces cut at the edges of its runs."""
    ids: list[int] = []
    weights: list[float] = []
    cuts = sorted({0, len(part.text), *(edge for start, end, _ in edges for edge in (start, end))})
    weight_at = {start: weight for start, _, weight in edges}
    for start, end in pairwise(cuts):
        encoder = encoders.inner if start else encoders.first if part.start == 0 else encoders.later
        piece = encoder.encode(part.text[start:end], add_special_tokens=False).ids
        ids += piece
        weights += [weight_at.get(start, 0.0)] * len(piece)
    return ids, weights
