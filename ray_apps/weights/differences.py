"""What two sets of weights differ in by their names and shapes, before a value is read."""

import re
from collections.abc import Mapping

from ray_apps.weights.tensor_files import RECOMPUTED, Spec

PER_TOKEN = re.compile(r"(^|\.)(embed_tokens|lm_head|wte)\.weight$")
"""Weights with a row for each token: a vocabulary that was extended has more of them."""
MOST_ADDED = 256
"""Tokens by which two vocabularies may differ; beyond that they are different ones."""


def differences(ours: Mapping[str, Spec], theirs: Mapping[str, Spec], names: tuple[str, str]) -> list[str]:
    """One line for each difference that keeps the two from belonging together.

    Recomputed buffers may be missing on either side, and weights with a row per token may have more rows on either.

    Args:
        names: what the two are called, as in `("base", "delta")`.
    """
    found = []
    for name in sorted(ours.keys() | theirs.keys()):
        if RECOMPUTED.search(name) and not (name in ours and name in theirs):
            continue
        if name not in ours or name not in theirs:
            found.append(f"{name}: only in {names[0] if name in ours else names[1]}")
        elif not _fit(name, ours[name].shape, theirs[name].shape):
            shapes = " and ".join(str(list(specs[name].shape)) for specs in (ours, theirs))
            found.append(f"{name}: {shapes} in {names[0]} and {names[1]}")
    return found


def _fit(name: str, one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    if one == other or not PER_TOKEN.search(name) or not len(one) == len(other) == 2:
        return one == other
    return one[1] == other[1] and abs(one[0] - other[0]) <= MOST_ADDED
