"""SmoothQuant (arXiv 2211.10438): activations and weights meet half way, so that int8 holds both.

An activation channel that is fifty times its neighbours leaves these a few of int8's 256 steps. Divided by
a scale of its own, with the weights of that channel multiplied by it, the product is the same function and
every channel has its share of the steps. The division costs nothing where a norm's weight precedes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STRENGTH = 0.7
"""SmoothQuant's α: how much of an outlier goes over to the weights; measured in docs/decisions/0009."""
LOUDEST = 2.5
"""How loud a channel may be after smoothing, over the median one, for all to share one scale."""
_SMALLEST = np.float32(1e-5)


def smoothing(loudest: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales [K] to divide activations by and multiply weights with: max|x|^α / max|w|^(1-α).

    Args:
        loudest: [K], the largest magnitude of each channel of the activations.
        weight: [N, K].

    Returns:
        Positive scales whose geometric mean is 1.
    """
    activations = np.maximum(loudest, _SMALLEST)
    weights = np.maximum(np.abs(weight).max(axis=0), _SMALLEST)
    scales = activations**STRENGTH / weights ** (1 - STRENGTH)
    return np.asarray(scales / np.exp(np.log(scales).mean()), np.float32)


def evened_out(loudest: NDArray[np.float32], scales: NDArray[np.float32]) -> bool:
    """Whether smoothing by `scales` leaves no channel so loud that the others are heard no more."""
    smoothed = loudest / scales
    return bool(smoothed.max() <= LOUDEST * np.median(smoothed))
