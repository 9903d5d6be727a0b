"""Intervals for figures: percentile bootstrap (Efron 1979) and McNemar's exact test.

The seed is fixed: the same measurements give the same interval, so a gate's verdict repeats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.report import Estimate

RESAMPLES = 2000
_SEED = 20_240_601

Floats = NDArray[np.float64]


def ratio_of_sums(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Σ numerators / Σ denominators, resampling the units (conversations, utterances) together.

    Args:
        numerators: one number per unit, such as the sum of KL over a conversation's positions.
        denominators: one number per unit, such as its number of positions.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    chosen = _resampled(len(top))
    low, high = np.quantile(top[chosen].sum(axis=1) / bottom[chosen].sum(axis=1), (0.025, 0.975))
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high))


def mean(values: Sequence[float]) -> Estimate:
    """Mean over units."""
    return ratio_of_sums(values, [1.0] * len(values))


def median(values: Sequence[float]) -> Estimate:
    """Median over units, such as the ratios of interleaved pairs of runs."""
    data = np.asarray(values, np.float64)
    low, high = np.quantile(np.median(data[_resampled(len(data))], axis=1), (0.025, 0.975))
    return Estimate(float(np.median(data)), float(low), float(high))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p-value that two contenders are equally often right, on the same utterances.

    Source: McNemar, Psychometrika 12 (1947); binomial form on the discordant pairs.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, float(2 * tail) / float(2**discordant))


def _resampled(units: int) -> NDArray[np.int64]:
    """Indices of `RESAMPLES` samples with replacement: shape (resamples, units)."""
    return np.random.default_rng(_SEED).integers(0, units, (RESAMPLES, units))
