"""NF4 (QLoRA, arXiv 2305.14314), as bitsandbytes rounds a weight to it: what a QLoRA adapter was trained on.

64 neighbouring values share one float32 scale, the largest magnitude among them; each becomes the nearest
of 16 levels, the quantiles of a normal distribution. The scales themselves stay as they are (no double
quantization).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.rows import BLOCK_ELEMENTS

BLOCK = 64

LEVELS = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
"""The 16 levels, appendix E of the paper."""

_MIDPOINTS = (LEVELS[:-1] + LEVELS[1:]) / np.float32(2)
_SMALLEST = np.float32(1e-38)


@dataclass(frozen=True)
class Quantized:
    """A matrix in NF4.

    Attributes:
        codes: index of each value's level, uint8, of the matrix's shape.
        scales: largest magnitude of each 64 values in row-major order, float32.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]


def quantize(matrix: NDArray[np.float32]) -> Quantized:
    """Round a matrix to NF4, in blocks of 64 over its values in row-major order; the last may be shorter."""
    flat = matrix.reshape(-1)
    blocks = _blocks(flat)
    scales = np.abs(blocks).max(axis=1, initial=0.0)
    # A whole block is multiplied by the inverse, a shorter last one divided: bitsandbytes, to the bit.
    scaled = blocks * (np.float32(1) / np.maximum(scales, _SMALLEST))[:, None]
    if flat.size % BLOCK:
        scaled[-1] = blocks[-1] / np.maximum(scales[-1], _SMALLEST)
    codes = np.zeros(scaled.shape, np.uint8)
    for midpoint in _MIDPOINTS:
        codes += scaled > midpoint
    return Quantized(codes.reshape(-1)[: flat.size].reshape(matrix.shape), scales)


def dequantize(quantized: Quantized) -> NDArray[np.float32]:
    """Level times scale, in float32."""
    flat = LEVELS[quantized.codes.reshape(-1)]
    blocks = _blocks(flat) * quantized.scales[:, None]
    return blocks.reshape(-1)[: flat.size].reshape(quantized.codes.shape)


def whole_blocks(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of rows as `pipeline.rows.row_blocks` gives, none of which ends within a block of 64."""
    columns = math.prod(shape[1:])
    together = BLOCK // math.gcd(BLOCK, columns)
    step = max(together, BLOCK_ELEMENTS // columns // together * together)
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def _blocks(flat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values as rows of 64, zeros after the last."""
    if flat.size % BLOCK:
        flat = np.concatenate([flat, np.zeros(-flat.size % BLOCK, np.float32)])
    return flat.reshape(-1, BLOCK)
