"""Error-compensated rounding: never worse than to nearest, to nearest where inputs do not correlate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_quantize import dequantize

from export import gptq as module
from export.gptq import error_factor, gptq
from export.quantize import quantize_blocks, unpacked_blocks
from runtime.errors import ExportError


def correlated(seed: int, rows: int, columns: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A matrix, and the squares of inputs that share a few directions."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(4 * columns, columns // 4)) @ random.normal(size=(columns // 4, columns))
    inputs += 0.1 * random.normal(size=inputs.shape)
    return random.normal(size=(rows, columns)).astype(np.float32), inputs.T @ inputs


def loss(weight: NDArray[np.float32], rounded: NDArray[np.float32], hessian: NDArray[np.float64]) -> float:
    error = (rounded - weight).astype(np.float64)
    return float(np.einsum("nk,kj,nj->", error, hessian, error))


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 1000), st.sampled_from([4, 8]), st.sampled_from([16, 32]), st.sampled_from([48, 64, 96])
)
def test_products_are_closer_than_with_rounding_to_nearest(
    seed: int, bits: int, block_size: int, columns: int
) -> None:
    weight, hessian = correlated(seed, 8, columns)
    nearest = quantize_blocks(weight, bits, block_size, bits == 8)
    made_up = gptq(weight, error_factor(hessian), bits, block_size, bits == 8)
    before = loss(weight, unpacked_blocks(nearest, columns, bits), hessian)
    after = loss(weight, unpacked_blocks(made_up, columns, bits), hessian)
    assert after < 0.7 * before


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("columns", "block_size"), [(64, 16), (96, 32), (40, 32), (24, 16)])
def test_inputs_that_do_not_correlate_are_rounded_to_nearest(
    bits: int, symmetric: bool, columns: int, block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHRINKAGE", np.ones(1, np.float32))
    weight = np.random.default_rng(columns).normal(size=(5, columns)).astype(np.float32)
    nearest = quantize_blocks(weight, bits, block_size, symmetric)
    found = gptq(weight, error_factor(np.eye(columns)), bits, block_size, symmetric)
    np.testing.assert_array_equal(found.packed, nearest.packed)
    np.testing.assert_array_equal(found.scales, nearest.scales)
    if nearest.zero_points is None:
        assert found.zero_points is None
    else:
        np.testing.assert_array_equal(found.zero_points, nearest.zero_points)


def test_a_searched_scale_is_no_worse() -> None:
    weight, _ = correlated(3, 16, 64)
    nearest = quantize_blocks(weight, 4, 32, symmetric=False)
    searched = gptq(weight, error_factor(np.eye(64)), 4, 32, symmetric=False)
    ones = np.eye(64)
    before = loss(weight, unpacked_blocks(nearest, 64, 4), ones)
    assert loss(weight, unpacked_blocks(searched, 64, 4), ones) < 0.95 * before


@pytest.mark.parametrize("columns", [1, 15, 16, 50])
def test_the_factor_is_that_of_the_inverse(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PANEL", 16)
    inputs = np.random.default_rng(columns).normal(size=(2 * columns, columns))
    hessian = inputs.T @ inputs
    upper = error_factor(hessian)
    damped = hessian + module.DAMPING * np.diagonal(hessian).mean() * np.eye(columns)
    np.testing.assert_array_equal(upper, np.triu(upper))
    np.testing.assert_allclose(upper.T @ upper @ damped, np.eye(columns), atol=1e-4)


def test_the_same_input_gives_the_same_bytes() -> None:
    weight, hessian = correlated(1, 32, 96)
    first, second = (gptq(weight.copy(), error_factor(hessian), 4, 32, False) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one is not None
        assert other is not None
        assert one.tobytes() == other.tobytes()


def test_rows_know_nothing_of_each_other() -> None:
    weight, hessian = correlated(2, 6, 64)
    whole = unpacked_blocks(gptq(weight, error_factor(hessian), 4, 32, False), 64, 4)
    half = unpacked_blocks(gptq(weight[3:], error_factor(hessian), 4, 32, False), 64, 4)
    np.testing.assert_allclose(whole[3:], half, rtol=1e-5, atol=1e-6)


def test_an_input_that_was_never_heard_is_no_obstacle() -> None:
    weight, hessian = correlated(4, 6, 64)
    hessian[7] = hessian[:, 7] = 0
    rounded = unpacked_blocks(gptq(weight, error_factor(hessian), 4, 32, False), 64, 4)
    assert np.isfinite(rounded).all()
    silent = unpacked_blocks(gptq(weight, error_factor(np.zeros((64, 64))), 4, 32, False), 64, 4)
    assert np.abs(silent - weight).max() < 0.3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    weight, hessian = correlated(5, 4, 64)
    broken = weight.copy()
    broken[1, 2] = value
    with pytest.raises(ExportError, match="NaN or infinite"):
        gptq(broken, error_factor(hessian), 4, 32, False)
    hessian[3, 3] = value
    with pytest.raises(ExportError, match="NaN or infinite"):
        error_factor(hessian)


@pytest.mark.parametrize(("bits", "symmetric"), [(4, False), (8, True), (8, False)])
def test_unpacked_is_what_the_layout_says(bits: int, symmetric: bool) -> None:
    weight, _ = correlated(6, 5, 40)
    blocks = quantize_blocks(weight, bits, 16, symmetric)
    np.testing.assert_allclose(unpacked_blocks(blocks, 40, bits), dequantize(blocks, 40, bits), rtol=1e-6)
