"""Figures with bounds: the bootstrap over units that are drawn whole."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure and its bounds: `low` <= `value` <= `high`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bootstrap:
    """Percentile bootstrap (Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979).

    Units such as questions are drawn whole, so that what hangs together stays together. The same data and seed have
    the same bounds, in whatever order they come. Units that are all alike have bounds of no width.
    """

    num_resamples: int = 1000
    level: float = 0.95
    """How often the bounds should hold the true value."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_resamples < 1:
            raise ValueError(f"num_resamples: {self.num_resamples} is not positive")
        if not 0 < self.level < 1:
            raise ValueError(f"level: {self.level} is not between 0 and 1")

    def generator(self) -> np.random.Generator:
        """A fresh source of chance."""
        return np.random.default_rng(self.seed)

    def draws(self, counts: Floats) -> Floats:
        """How often each kind of unit is drawn, (num_resamples, kinds), where it occurs `counts` times, (kinds,)."""
        num_units = int(counts.sum())
        drawn = self.generator().multinomial(num_units, counts / num_units, self.num_resamples)
        return np.asarray(drawn, np.float64)

    def estimate(self, rows: Floats, statistic: Callable[[Floats], Floats]) -> Estimate | None:
        """`statistic` of the sums over all units of `rows`, (units, k).

        `statistic` maps sums (..., k) to (...), and to NaN where it is not defined: such resamples are left out. None
        if it is not defined for the units themselves.
        """
        value = float(statistic(rows.sum(axis=0)))
        if math.isnan(value):
            return None
        kinds, counts = np.unique(rows, axis=0, return_counts=True)
        return self.around(value, statistic(self.draws(counts.astype(np.float64)) @ kinds))

    def around(self, value: float, samples: Floats) -> Estimate:
        """`value` with bounds from what it was in the resamples, widened to hold it where these lean to one side."""
        defined = samples[~np.isnan(samples)]
        if not len(defined):
            return Estimate(value, value, value)
        low, high = np.quantile(defined, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Estimate(value, min(value, float(low)), max(value, float(high)))


BOOTSTRAP = Bootstrap()


def ratio(top: Floats, bottom: Floats) -> Floats:
    """The quotients, NaN where `bottom` is 0. Both are of one shape."""
    quotients = np.full(np.shape(bottom), np.nan)
    np.divide(top, bottom, out=quotients, where=np.asarray(bottom) != 0)
    return quotients


def share(*columns: int) -> Callable[[Floats], Floats]:
    """A statistic: what these columns are of all."""
    return lambda sums: ratio(sums[..., list(columns)].sum(axis=-1), sums.sum(axis=-1))
