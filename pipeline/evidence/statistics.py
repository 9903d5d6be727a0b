"""Intervals for figures: percentile bootstrap (Efron 1979) and McNemar's exact test.

The seed is fixed: the same measurements give the same interval, so a gate's verdict repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.report import Estimate

RESAMPLES = 2000
_SEED = 20_240_601

Floats = NDArray[np.float64]
Samples = NDArray[np.int64]
"""Which units each sample holds: (samples, units)."""


def estimate(units: int, statistic: Callable[[Samples], Floats]) -> Estimate:
    """A figure, and its 95 % interval when the units it was measured on are drawn again.

    Args:
        units: conversations, utterances or pairs; at least one.
        statistic: samples of them → one figure a sample.
    """
    everything = np.arange(units)[None]
    drawn = np.random.default_rng(_SEED).integers(0, units, (RESAMPLES, units))
    low, high = np.quantile(statistic(drawn), (0.025, 0.975))
    return Estimate(float(statistic(everything)[0]), float(low), float(high), units)


def ratio_of_sums(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Σ numerators / Σ denominators, resampling the units (conversations, utterances) together.

    Args:
        numerators: one number per unit, such as the sum of KL over a conversation's positions.
        denominators: one number per unit, such as its number of positions.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    return estimate(len(top), lambda chosen: top[chosen].sum(axis=1) / bottom[chosen].sum(axis=1))


def mean(values: Sequence[float]) -> Estimate:
    """Mean over units."""
    return ratio_of_sums(values, [1.0] * len(values))


def median(values: Sequence[float]) -> Estimate:
    """Median over units, such as the ratios of interleaved pairs of runs."""
    data = np.asarray(values, np.float64)
    return estimate(len(data), lambda chosen: np.median(data[chosen], axis=1))


def largest(values: Sequence[float]) -> Estimate:
    """Maximum over units. A resampling can only leave the largest out, so the interval ends at the figure."""
    data = np.asarray(values, np.float64)
    return estimate(len(data), lambda chosen: data[chosen].max(axis=1))


def pooled_quantile(groups: Sequence[Floats], share: float) -> Estimate:
    """Quantile of all groups' values together, linearly interpolated; a group (conversation) is a unit."""
    values = np.concatenate(groups)
    order = np.argsort(values, kind="stable")
    ordered, of = values[order], np.repeat(np.arange(len(groups)), [len(group) for group in groups])[order]

    def quantile(chosen: Samples) -> Floats:
        found = np.empty(len(chosen))
        for row, sample in enumerate(chosen):
            times = np.bincount(sample, minlength=len(groups))[of]
            ends = np.cumsum(times)
            place = share * (ends[-1] - 1)
            low, high = np.searchsorted(ends, [math.floor(place), math.ceil(place)], side="right")
            found[row] = ordered[low] + (place - math.floor(place)) * (ordered[high] - ordered[low])
        return found

    return estimate(len(groups), quantile)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p-value that two contenders are equally often right, on the same utterances.

    Source: McNemar, Psychometrika 12 (1947); binomial form on the discordant pairs.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, float(2 * tail) / float(2**discordant))
