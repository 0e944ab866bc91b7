"""How far judges, or a judge and people, say the same of the same items.

An item is whatever was judged once by each, such as a question and a pair of models; a verdict is any word.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ray_apps.evaluate.bootstrap import BOOTSTRAP, Bootstrap, Estimate, Floats, ratio, share

TIE = "tie"
Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True)
class Agreement:
    """Two judges on the items that both judged.

    `equal`: the share with equal verdicts. `equal_decided`: the same of the `num_decided` items where neither says
    tie; None if there are none. `kappa`: Cohen's; None where chance alone makes them agree on all, for both always
    say the same one thing. `num_left_out`: items that only one of them judged.
    """

    equal: Estimate
    equal_decided: Estimate | None
    kappa: Estimate | None
    num_items: int
    num_decided: int
    num_left_out: int


def agreement(first: Mapping[Item, str], second: Mapping[Item, str], bootstrap: Bootstrap = BOOTSTRAP) -> Agreement:
    """How two judges agree.

    With and without ties as in Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena" (2023); kappa
    from Cohen, "A Coefficient of Agreement for Nominal Scales" (1960).

    Raises:
        ValueError: they have no item in common.
    """
    pairs = [(verdict, second[item]) for item, verdict in first.items() if item in second]
    if not pairs:
        raise ValueError("the two judges have no item in common")
    decided = [pair for pair in pairs if TIE not in pair]
    equal = _equal(pairs, bootstrap)
    assert equal is not None
    return Agreement(
        equal=equal,
        equal_decided=_equal(decided, bootstrap),
        kappa=_cohen_kappa(pairs, bootstrap),
        num_items=len(pairs),
        num_decided=len(decided),
        num_left_out=len(first.keys() ^ second.keys()),
    )


def _equal(pairs: Sequence[tuple[str, str]], bootstrap: Bootstrap) -> Estimate | None:
    rows = np.array([(one == other, one != other) for one, other in pairs], np.float64)
    return bootstrap.estimate(rows, share(0)) if pairs else None


def _cohen_kappa(pairs: Sequence[tuple[str, str]], bootstrap: Bootstrap) -> Estimate | None:
    verdicts = sorted({verdict for pair in pairs for verdict in pair})
    cells = [verdicts.index(one) * len(verdicts) + verdicts.index(other) for one, other in pairs]

    def kappa(sums: Floats) -> Floats:
        table = sums.reshape(*sums.shape[:-1], len(verdicts), len(verdicts))
        num_items = sums.sum(axis=-1)
        observed = num_items * np.trace(table, axis1=-2, axis2=-1)
        expected = (table.sum(axis=-1) * table.sum(axis=-2)).sum(axis=-1)
        return ratio(observed - expected, num_items**2 - expected)

    return bootstrap.estimate(np.eye(len(verdicts) ** 2)[cells], kappa)


@dataclass(frozen=True)
class ManyJudges:
    """Several judges on the items that all of them judged.

    `kappa`: Fleiss'; None where all verdicts are the same. `num_left_out`: items that not all of them judged.
    """

    kappa: Estimate | None
    num_judges: int
    num_items: int
    num_left_out: int


def fleiss_kappa(judges: Sequence[Mapping[Item, str]], bootstrap: Bootstrap = BOOTSTRAP) -> ManyJudges:
    """How several judges agree: Fleiss, "Measuring Nominal Scale Agreement Among Many Raters" (1971).

    Raises:
        ValueError: there are fewer than two judges, or no item that all of them judged.
    """
    if len(judges) < 2:
        raise ValueError(f"it takes two judges to agree; there are {len(judges)}")
    items = {item for judge in judges for item in judge}
    common = [item for item in items if all(item in judge for judge in judges)]
    if not common:
        raise ValueError(f"the {len(judges)} judges have no item in common")
    said = [[judge[item] for judge in judges] for item in common]
    verdicts = sorted({verdict for row in said for verdict in row})
    counts = np.array([[row.count(verdict) for verdict in verdicts] for row in said], np.float64)
    estimate = _fleiss(counts, bootstrap)
    return ManyJudges(estimate, len(judges), len(common), len(items) - len(common))


def _fleiss(counts: Floats, bootstrap: Bootstrap) -> Estimate | None:
    """Of `counts`, (items, verdicts): how many judges gave each verdict."""
    num_judges = counts[0].sum()

    def kappa(sums: Floats) -> Floats:
        squares, totals = sums[..., 0], sums[..., 1:]
        num_verdicts = totals.sum(axis=-1)
        observed = (squares - num_verdicts) * num_verdicts / (num_judges - 1)
        expected = (totals**2).sum(axis=-1)
        return ratio(observed - expected, num_verdicts**2 - expected)

    return bootstrap.estimate(np.column_stack([(counts**2).sum(axis=-1), counts]), kappa)
