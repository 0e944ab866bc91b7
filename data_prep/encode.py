"""From rendered text to ids, with the loss weight of every token. Needs nothing but `tokenizers`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from data_prep.chat_template import Rendered
from data_prep.encoders import Encoders
from data_prep.word_encoder import CUT, Stretch

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


def encode_chats(encoders: Encoders, batch: Sequence[Rendered], memo: "Memo | None" = None) -> list[EncodedChat]:
    """Encode rendered conversations in one batch.

    Text between two special tokens is encoded as one piece, as transformers would. Where a token would straddle the
    edge of a span, that piece is cut at its edges, so that a span always is whole tokens.

    `memo` keeps the pieces: one met again, as when a chat was encoded whole and then is in parts, costs nothing.
    """
    memo = {} if memo is None else memo
    chats = [[_piece(rendered, part) for part in _parts(encoders, rendered)] for rendered in batch]
    unknown = {piece: None for chat in chats for piece in chat if piece not in memo}
    memo.update(_encode_by_words(encoders, unknown))
    whole = [piece for piece in unknown if piece not in memo]
    for piece, encoding in zip(whole, _encode_texts(encoders, whole), strict=True):
        memo[piece] = _encode_piece(encoders, piece, encoding)
    return [_join([memo[piece] for piece in chat]) for chat in chats]


@dataclass(frozen=True, slots=True)
class _Part:
    """Characters `[start, end)` of a rendered text: one special token, or the text between two of them."""

    text: str
    start: int
    end: int
    special: bool


class _Piece(NamedTuple):
    """All that the tokens of a part depend on. `edges`: start, end and weight of each trained run of characters."""

    text: str
    special: bool
    opens: bool
    edges: tuple[tuple[int, int, float], ...]

    @property
    def place(self) -> str:
        return "first" if self.opens else "later"


Memo = dict[_Piece, EncodedChat]
"""Pieces of rendered texts in tokens."""


def _encode_texts(encoders: Encoders, pieces: Iterable[_Piece]) -> Iterator[Encoding | None]:
    """Encode each piece as `first` or `later`, in batches; results in the order of `pieces`, None for a special."""
    texts = [piece for piece in pieces if not piece.special]
    opening = [piece.text for piece in texts if piece.opens]
    others = [piece.text for piece in texts if not piece.opens]
    first = iter(encoders.first.encode_batch(opening, add_special_tokens=False))
    later = iter(encoders.later.encode_batch(others, add_special_tokens=False))
    return (None if piece.special else next(first if piece.opens else later) for piece in pieces)


def _parts(encoders: Encoders, rendered: Rendered) -> Iterator[_Part]:
    """Cut a rendered text at its special tokens, each with the white space its tokenizer lets it swallow."""
    text, end = rendered.text, 0
    for start, stop in rendered.specials:
        token = encoders.specials.get(text[start:stop])
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


def _piece(rendered: Rendered, part: _Part) -> _Piece:
    inside = [span for span in rendered.spans if span.start < part.end and span.end > part.start]
    edges = tuple((max(s.start, part.start) - part.start, min(s.end, part.end) - part.start, s.weight) for s in inside)
    return _Piece(part.text, part.special, part.start == 0, edges)


def _encode_by_words(encoders: Encoders, pieces: Iterable[_Piece]) -> Iterator[tuple[_Piece, EncodedChat]]:
    """Encode the pieces that a word encoder can cut at all edges of their runs."""
    if encoders.words is None:
        return
    cut = [(piece, runs) for piece in pieces if (runs := _runs_between_cuts(piece)) is not None]
    encoded = iter(encoders.words.encode([stretch for _, runs in cut for stretch, _ in runs]))
    for piece, runs in cut:
        ids = [next(encoded) for _ in runs]
        weights = [np.full(len(part), weight, np.float32) for part, (_, weight) in zip(ids, runs, strict=True)]
        yield piece, _join([EncodedChat(*both) for both in zip(ids, weights, strict=True)])


def _runs_between_cuts(piece: _Piece) -> list[tuple[Stretch, float]] | None:
    """The runs of a piece that are trained alike, with their weights; None if one does not start at a cut."""
    if piece.special:
        return None
    edges = sorted({0, len(piece.text), *(edge for start, end, _ in piece.edges for edge in (start, end))})
    weight_at = {start: weight for start, end, weight in piece.edges if end > start}
    runs = []
    for start, end in pairwise(edges):
        if start and not CUT.match(piece.text, start):
            return None
        stretch = Stretch(piece.text[start + 1 : end], "inner") if start else Stretch(piece.text[:end], piece.place)
        runs.append((stretch, weight_at.get(start, 0.0)))
    return runs


def _encode_piece(encoders: Encoders, piece: _Piece, encoding: Encoding | None) -> EncodedChat:
    if encoding is None:
        weight = piece.edges[0][2] if piece.edges else 0.0
        return EncodedChat(np.array([encoders.specials[piece.text].id], np.int32), np.array([weight], np.float32))
    runs = _token_runs(encoding, piece.edges, len(piece.text))
    if runs is None:
        return _encode_cut(encoders, piece)
    ids = np.array(encoding.ids, np.int32)
    weights = np.zeros(len(ids), np.float32)
    for start, end, weight in runs:
        weights[start:end] = weight
    return EncodedChat(ids, weights)


def _join(pieces: Sequence[EncodedChat]) -> EncodedChat:
    if not pieces:
        return EncodedChat(np.zeros(0, np.int32), np.zeros(0, np.float32))
    return EncodedChat(
        np.concatenate([piece.input_ids for piece in pieces]), np.concatenate([piece.weights for piece in pieces])
    )


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


def _encode_cut(encoders: Encoders, piece: _Piece) -> EncodedChat:
    """Encode a text in pieces cut at the edges of its runs."""
    ids: list[int] = []
    weights: list[float] = []
    cuts = sorted({0, len(piece.text), *(edge for start, end, _ in piece.edges for edge in (start, end))})
    weight_at = {start: weight for start, _, weight in piece.edges}
    for start, end in pairwise(cuts):
        encoder = encoders.inner if start else encoders.first if piece.opens else encoders.later
        tokens = encoder.encode(piece.text[start:end], add_special_tokens=False).ids
        ids += tokens
        weights += [weight_at.get(start, 0.0)] * len(tokens)
    return EncodedChat(np.array(ids, np.int32), np.array(weights, np.float32))
