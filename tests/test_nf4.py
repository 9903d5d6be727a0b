"""NF4 in numpy is bitsandbytes' to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.nf4 import BLOCK, LEVELS, dequantize, quantize, whole_blocks

functional = pytest.importorskip("bitsandbytes.functional", reason="compares with bitsandbytes")


def theirs(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packed codes, scales and values by bitsandbytes."""
    packed, state = functional.quantize_4bit(
        torch.from_numpy(matrix), blocksize=BLOCK, quant_type="nf4", compress_statistics=False
    )
    values = functional.dequantize_4bit(packed, state)
    return packed.numpy().reshape(-1), state.absmax.numpy(), values.numpy()


@pytest.mark.parametrize("shape", [(8, 64), (3, 192), (96, 128), (48, 80), (5, 48)])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 50.0])
def test_codes_scales_and_values_are_bitsandbytes_own(shape: tuple[int, int], spread: float) -> None:
    rng = np.random.default_rng(3)
    matrix = (rng.standard_t(3, shape) * spread).astype(np.float32)
    matrix[0, :3] = 0.0, matrix.max(), -matrix.max()
    packed, scales, values = theirs(matrix)
    ours = quantize(matrix)
    codes = ours.codes.reshape(-1)
    np.testing.assert_array_equal(codes[::2] << 4 | codes[1::2], packed)
    np.testing.assert_array_equal(ours.scales, scales)
    if shape[1] % BLOCK == 0:  # else bitsandbytes on CPU takes scales by row, which CUDA does not
        np.testing.assert_array_equal(dequantize(ours), values)
    assert len(np.unique(codes)) > 8


def test_zeros_stay_zeros() -> None:
    matrix = np.zeros((2, 128), np.float32)
    matrix[1, 64:] = 1.0
    np.testing.assert_array_equal(dequantize(quantize(matrix)), matrix)
    np.testing.assert_array_equal(theirs(matrix)[2], matrix)


def test_values_between_two_levels_go_where_bitsandbytes_puts_them() -> None:
    middles = (LEVELS[:-1] + LEVELS[1:]) / np.float32(2)
    around = [middles, np.nextafter(middles, np.float32(9)), np.nextafter(middles, np.float32(-9))]
    matrix = np.zeros((1, 64), np.float32)
    matrix[0, :46] = [*np.concatenate(around), 1.0]
    np.testing.assert_array_equal(dequantize(quantize(matrix)), theirs(matrix)[2])


@pytest.mark.parametrize("shape", [(100, 48), (7, 64), (4096, 2048), (33, 1), (40, 100_003)])
def test_blocks_of_rows_end_where_blocks_of_values_do(shape: tuple[int, int]) -> None:
    ranges = list(whole_blocks(shape))
    assert [start for start, _ in ranges][1:] == [stop for _, stop in ranges][:-1]
    assert (ranges[0][0], ranges[-1][1]) == (0, shape[0])
    assert all(start * shape[1] % BLOCK == 0 for start, _ in ranges)
