"""Coordinate descent on a rounded matrix: never worse, at rest where no move helps, exact where it can be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gptq import correlated, loss

from export import descent as module
from export.descent import descend
from export.gptq import damped, error_factor, gptq
from export.quantize import Blocks, centred_blocks, quantize_blocks, unpacked_blocks, unpacked_zeros


def rounded(seed: int, rows: int, columns: int, size: int) -> tuple[np.ndarray, np.ndarray, Blocks]:
    weight, inputs = correlated(seed, rows, columns)
    return weight, damped(inputs), gptq(weight, error_factor(inputs), 4, size, False)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.sampled_from([16, 32]), st.sampled_from([48, 40, 96, 160]))
def test_every_row_is_closer_than_gptq_left_it(seed: int, size: int, columns: int) -> None:
    weight, hessian, blocks = rounded(seed, 8, columns, size)
    found = descend(weight, blocks, hessian.astype(np.float32), 4)
    before, after = (unpacked_blocks(each, columns, 4) for each in (blocks, found))
    for row in range(8):
        own = slice(row, row + 1)
        assert loss(weight[own], after[own], hessian) <= loss(weight[own], before[own], hessian) * 1.001
    assert loss(weight, after, hessian) < 0.97 * loss(weight, before, hessian)


def test_integers_rest_where_no_single_move_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUNDS", 12)
    weight, hessian, blocks = rounded(3, 4, 32, 16)
    found = descend(weight, blocks, hessian.astype(np.float32), 4)
    centred, zeros = centred_blocks(found, 4).astype(np.float64), unpacked_zeros(found, 4).astype(np.float64)
    least = loss(weight, unpacked_blocks(found, 32, 4), hessian)
    for row, column, move in itertools.product(range(4), range(32), (-1, 1)):
        block, at = divmod(column, 16)
        moved = centred.copy()
        moved[row, block, at] += move
        if 0 <= moved[row, block, at] + zeros[row, block] <= 15:
            values = (moved * found.scales[:, :, None]).reshape(4, 32)
            assert loss(weight, values, hessian) >= least * (1 - 1e-4)


def test_scales_are_the_least_squares_of_their_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUNDS", 1)
    weight, hessian, blocks = rounded(5, 3, 64, 16)
    found = descend(weight, blocks, hessian.astype(np.float32), 4)
    root = np.linalg.cholesky(hessian)
    centred = centred_blocks(found, 4).astype(np.float64)
    for row in range(3):
        columns = np.zeros((64, 4))
        for block in range(4):
            columns[block * 16 : block * 16 + 16, block] = centred[row, block]
        best = np.linalg.lstsq(root.T @ columns, root.T @ weight[row], rcond=None)[0]
        assert (best > 0).all()
        np.testing.assert_allclose(found.scales[row], best, rtol=1e-3)


def test_a_matrix_that_is_its_own_rounding_stays() -> None:
    _, hessian, blocks = rounded(7, 5, 64, 32)
    exact = unpacked_blocks(blocks, 64, 4)
    found = descend(exact, blocks, hessian.astype(np.float32), 4)
    np.testing.assert_array_equal(found.packed, blocks.packed)
    np.testing.assert_allclose(found.scales, blocks.scales, rtol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_of_zeros_and_rows_in_parts_change_nothing_else(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, inputs = correlated(9, 6, 64)
    weight[2, 16:32] = 0
    weight[4] = 0
    blocks = quantize_blocks(weight, bits, 16, bits == 8)
    hessian = damped(inputs).astype(np.float32)
    whole = descend(weight, blocks, hessian, bits)
    assert (whole.zero_points is None) == (bits == 8)
    assert (unpacked_blocks(whole, 64, bits)[4] == 0).all()
    assert np.isfinite(whole.scales).all()
    assert (whole.scales > 0).all()
    monkeypatch.setattr(module, "PRODUCTS", 2 * 16)
    parts = descend(weight, blocks, hessian, bits)
    np.testing.assert_array_equal(parts.packed, whole.packed)
    np.testing.assert_allclose(parts.scales, whole.scales, rtol=1e-5)
    again = descend(weight, blocks, hessian, bits)
    assert again.scales.tobytes() == parts.scales.tobytes()
