"""Smoothing changes no product, and leaves int8 less to lose."""

import numpy as np
from numpy.typing import NDArray

from export.quantize import quantize_channels
from export.smoothing import evened_out, smoothing

RANDOM = np.random.default_rng(2)
WEIGHT = RANDOM.normal(size=(96, 64)).astype(np.float32)
QUIET = RANDOM.normal(size=(128, 64)).astype(np.float32)
LOUD = QUIET * np.where(np.arange(64) % 16 == 3, 60, 1).astype(np.float32)


def scales_for(activations: NDArray[np.float32]) -> NDArray[np.float32]:
    return smoothing(np.abs(activations).max(axis=0), WEIGHT)


def loss(scales: NDArray[np.float32]) -> float:
    """Relative error of quiet tokens' products beside a few loud ones, both sides rounded, all as a whole."""
    together = np.concatenate([LOUD[:4], QUIET[4:]])
    smoothed = together / scales
    step = (smoothed.max() - smoothed.min()) / 255
    rounded, steps = quantize_channels(WEIGHT * scales)
    product = (np.rint(smoothed / step) * step) @ (rounded * steps[:, None]).T
    exact = together @ WEIGHT.T
    return float(np.linalg.norm(product[4:] - exact[4:]) / np.linalg.norm(exact[4:]))


def test_the_product_is_the_same() -> None:
    scales = scales_for(LOUD)
    assert scales.shape == (64,)
    assert scales.dtype == np.float32
    assert (scales > 0).all()
    exact = LOUD.astype(np.float64) @ WEIGHT.T.astype(np.float64)
    smoothed = (LOUD / scales).astype(np.float64) @ (WEIGHT * scales).T.astype(np.float64)
    assert np.abs(smoothed - exact).max() < 1e-6 * np.abs(exact).max()


def test_outliers_cost_less() -> None:
    assert loss(scales_for(LOUD)) < 0.5 * loss(np.ones(64, np.float32))


def test_a_channel_that_is_never_used_is_harmless() -> None:
    weight = WEIGHT.copy()
    weight[:, 7] = 0
    loudest = np.abs(LOUD).max(axis=0)
    loudest[5] = 0
    scales = smoothing(loudest, weight)
    assert np.isfinite(scales).all()
    assert (scales > 0).all()


def test_an_outlier_beyond_smoothing_is_told() -> None:
    loudest = np.abs(QUIET).max(axis=0)
    assert evened_out(loudest, smoothing(loudest, WEIGHT))
    loudest[9] *= 1000
    assert not evened_out(loudest, smoothing(loudest, WEIGHT))
