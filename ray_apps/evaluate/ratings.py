"""Models on one scale from battles between two: Bradley-Terry, online Elo, and who beats whom how often.

A battle is (first, second, worth of the first: 1 won, 0.5 tied, 0 lost), as `ray_apps.votes.battles` yields them. A
battle of a model with itself says nothing and is left out. Without battles there are no ratings.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from ray_apps.evaluate.bootstrap import BOOTSTRAP, Bootstrap, Floats

Battle = tuple[str, str, float]
SCALE = 400 / math.log(10)
"""Elo points of one unit of log-odds: who is 400 ahead wins ten times as often as not."""
MEAN = 1000.0
MAX_STEPS = 200
TOLERANCE = 1e-8
"""In log-odds."""


@dataclass(frozen=True)
class Rating:
    """A model's rating in Elo points, with bounds: `low` <= `rating` <= `high`."""

    model: str
    rating: float
    low: float
    high: float
    num_battles: int


def bradley_terry(battles: Iterable[Battle], prior: float = 0.1, bootstrap: Bootstrap = BOOTSTRAP) -> list[Rating]:
    """The ratings under which the battles are likeliest, the best first; their order makes no difference.

    Bradley & Terry, "Rank Analysis of Incomplete Block Designs" (1952), a tie being half a win for each; Elo's scale
    with a mean of 1000. Every two models that met have tied `prior` battles more, so that whoever won or lost all has
    a rating all the same. Models that are not connected by battles cannot be compared: each of the `components` has
    its own mean of 1000. The units of the bounds are battles.

    Raises:
        ValueError: `prior` is not positive, or a battle is worth less than 0 or more than 1.
    """
    if not prior > 0:
        raise ValueError(f"prior: {prior} is not positive")
    models, cells, counts = _counted(battles)
    if not models:
        return []
    met = np.zeros((len(models), len(models)))
    for i, j, _ in cells:
        met[i, j] = met[j, i] = 1
    ratings = MEAN + SCALE * _strengths(_wins(cells, counts[None], met * prior / 2), met)[0]
    samples = MEAN + SCALE * _strengths(_wins(cells, bootstrap.draws(counts), met * prior / 2), met)
    return _ranked(models, cells, counts, ratings, samples, bootstrap)


def elo(
    battles: Iterable[Battle], k: float = 4.0, start: float = MEAN, bootstrap: Bootstrap = BOOTSTRAP
) -> list[Rating]:
    """Online Elo, the best first: every battle moves `k` points times the surprise from one model to the other.

    Elo, "The Rating of Chessplayers, Past and Present" (1978). Later battles weigh more. The bounds are from battles
    drawn in any order, so that they show what hangs on the order too.

    Raises:
        ValueError: a battle is worth less than 0 or more than 1.
    """
    fought = [battle for battle in battles if battle[0] != battle[1]]
    models, cells, counts = _counted(fought)
    if not models:
        return []
    index = {model: number for number, model in enumerate(models)}
    history = np.array([(index[first], index[second], worth) for first, second, worth in fought], np.float64)
    ratings = np.full((1, len(models)), start, np.float64)
    samples = np.full((bootstrap.num_resamples, len(models)), start, np.float64)
    generator = bootstrap.generator()
    for battle in history:
        _update(ratings, battle[None], k)
        _update(samples, history[generator.integers(len(history), size=len(samples))], k)
    return _ranked(models, cells, counts, ratings[0], samples, bootstrap)


def components(battles: Iterable[Battle]) -> list[tuple[str, ...]]:
    """Models that are connected by battles, if through others; ratings compare only within one. The largest first.

    Raises:
        ValueError: a battle is worth less than 0 or more than 1.
    """
    models, cells, _ = _counted(battles)
    met = np.zeros((len(models), len(models)))
    for i, j, _ in cells:
        met[i, j] = 1
    found: dict[int, list[str]] = {}
    for model, label in zip(models, _labels(met) if models else (), strict=True):
        found.setdefault(int(label), []).append(model)
    return sorted((tuple(names) for names in found.values()), key=lambda names: (-len(names), names))


def win_rates(battles: Iterable[Battle]) -> dict[tuple[str, str], tuple[float, int]]:
    """By (a, b), in both orders: the share of their battles that a won, a tie being half, and how many there were.

    Raises:
        ValueError: a battle is worth less than 0 or more than 1.
    """
    models, cells, counts = _counted(battles)
    wins = _wins(cells, counts[None], np.zeros((len(models), len(models))))[0]
    totals = wins + wins.T
    return {
        (models[i], models[j]): (float(wins[i, j] / totals[i, j]), round(totals[i, j]))
        for i, j in zip(*np.nonzero(totals), strict=True)
    }


Cells = list[tuple[int, int, float]]


def _counted(battles: Iterable[Battle]) -> tuple[list[str], Cells, Floats]:
    """Models in the order of names; kinds of battles as (i, j, worth of i), i before j; how many of each there were."""
    counter: Counter[Battle] = Counter()
    for first, second, worth in battles:
        if not 0 <= worth <= 1:
            raise ValueError(f"{first} against {second}: {worth} is not between 0 and 1")
        if first != second:
            counter[(first, second, worth) if first < second else (second, first, 1 - worth)] += 1
    models = sorted({model for first, second, _ in counter for model in (first, second)})
    index = {model: number for number, model in enumerate(models)}
    kinds = sorted(counter)
    cells = [(index[first], index[second], worth) for first, second, worth in kinds]
    return models, cells, np.array([counter[kind] for kind in kinds], np.float64)


def _wins(cells: Cells, counts: Floats, prior: Floats) -> Floats:
    """How often i beat j, (resamples, models, models), from `counts`, (resamples, cells), and `prior` added to each."""
    wins = np.repeat(prior[None], len(counts), axis=0)
    for column, (i, j, worth) in enumerate(cells):
        wins[:, i, j] += counts[:, column] * worth
        wins[:, j, i] += counts[:, column] * (1 - worth)
    return wins


def _strengths(wins: Floats, met: Floats) -> Floats:
    """The likeliest log-strengths, (resamples, models), with a mean of 0 in every component.

    Newton's method with the damping of Sun & Tran-Dinh, "Generalized Self-Concordant Functions" (2019), under which
    the likelihood of a logistic model never falls.
    """
    labels = _labels(met)
    pinned = (labels[:, None] == labels[None]).astype(np.float64)
    battles = wins + wins.swapaxes(-1, -2)
    strengths = np.zeros(wins.shape[:2])
    for _ in range(MAX_STEPS):
        expected = expit(strengths[:, :, None] - strengths[:, None])
        slope = (wins - battles * expected).sum(axis=-1)
        weights = battles * expected * (1 - expected)
        curvature = np.eye(len(met)) * weights.sum(axis=-1)[..., None] - weights + pinned
        step = np.linalg.solve(curvature, slope[..., None])[..., 0]
        largest = (met * abs(step[:, :, None] - step[:, None])).max(axis=(-1, -2))[:, None]
        strengths += step * np.log1p(largest) / np.maximum(largest, TOLERANCE**2)
        if largest.max() < TOLERANCE:
            break
    return strengths


def _labels(met: Floats) -> Floats:
    """The number of the component of each model."""
    labels: Floats = connected_components(met, directed=False)[1]
    return labels


def _update(ratings: Floats, battles: Floats, k: float) -> None:
    """Let `ratings`, (resamples, models), take in one battle each: `battles`, (resamples, 3)."""
    rows, first, second = np.arange(len(ratings)), battles[:, 0].astype(int), battles[:, 1].astype(int)
    expected = expit((ratings[rows, first] - ratings[rows, second]) / SCALE)
    gain = k * (battles[:, 2] - expected)
    ratings[rows, first] += gain
    ratings[rows, second] -= gain


def _ranked(
    models: list[str], cells: Cells, counts: Floats, ratings: Floats, samples: Floats, bootstrap: Bootstrap
) -> list[Rating]:
    num_battles: Counter[int] = Counter()
    for (i, j, _), count in zip(cells, counts, strict=True):
        num_battles[i] += int(count)
        num_battles[j] += int(count)
    found = []
    for number, model in enumerate(models):
        estimate = bootstrap.around(float(ratings[number]), samples[:, number])
        found.append(Rating(model, estimate.value, estimate.low, estimate.high, num_battles[number]))
    return sorted(found, key=lambda rating: (-rating.rating, rating.model))
