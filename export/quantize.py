"""Rounding of a weight matrix: block by block, in the layout of ONNX Runtime's MatMulNBits, or row by row.

Every `block_size` neighbours along a row share one scale, and at 4 bits one zero point:
`weight ≈ (quantized - zero_point) * scale`, quantized an unsigned integer. Scales are such as float16 has, as
far as its range goes, so that two bytes hold one; weights are rounded with the scales that are stored. The
layout is that of
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ExportError

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""A block that needs a smaller scale is zero for every purpose, and is stored as zeros."""
_SMALLEST_SHORT, _LARGEST_SHORT = 2.0**-18, float(np.finfo(np.float16).max)
"""Between them float16 has a scale to 2 %, and from 2^-14 on to 0.1 %."""


class Blocks(NamedTuple):
    """A rounded matrix [N, K], its rows padded with zeros to whole blocks of B; C = ceil(K / B)."""

    packed: NDArray[np.uint8]
    """[N, C, B * bits / 8]; at 4 bits the first of two values is in the low half of the byte."""
    scales: NDArray[np.float32]
    """[N, C]; `compact` makes two bytes of each."""
    zero_points: NDArray[np.uint8] | None
    """[N, ceil(C * bits / 8)], packed as the values are; None: 2^(bits-1) everywhere."""


def quantize_blocks(weight: NDArray[np.float32], bits: int, block_size: int, symmetric: bool) -> Blocks:
    """Round a matrix to nearest, block by block.

    A finite weight is reproduced to half a scale: the range of a block's values, zero included, is
    spread over all 2^bits integers, or with `symmetric` over as many on each side of zero.

    Args:
        weight: [N, K].
        bits: 4 or 8.
        block_size: B, a power of two of at least 16.
        symmetric: leave the zero point at 2^(bits-1).

    Raises:
        ExportError: a block has no finite scale.
    """
    rows, columns = weight.shape
    count = -(-columns // block_size)
    if columns % block_size:
        weight = np.pad(weight, ((0, 0), (0, count * block_size - columns)))
    blocks = weight.reshape(rows, count, block_size)
    top = (1 << bits) - 1
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    if symmetric:
        middle = np.float32(1 << (bits - 1))
        scales = np.maximum(high, -low) / (middle - 1)
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scales = high / top - low / top  # divided first: the difference alone may overflow
    if not np.isfinite(scales).all():
        raise ExportError("a weight is NaN or infinite, so it has no quantized form: check the checkpoint")
    scales[scales < SMALLEST_SCALE] = 1
    scales = covering_scales(scales)
    zeros = np.full_like(scales, middle) if symmetric else np.clip(np.rint(-low / scales), 0, top)
    values = blocks / scales[:, :, None]
    np.rint(values, out=values)
    values += zeros[:, :, None]
    np.clip(values, 0, top, out=values)
    integers = values.astype(np.uint8).reshape(rows, -1)
    return packed_blocks(integers, scales, None if symmetric else zeros, bits)


def short_scales(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Positive scales as float16 has them, to the nearest; what it has not, or not to 2 %, stays as it is."""
    inside = (scales >= _SMALLEST_SHORT) & (scales <= _LARGEST_SHORT)
    halves = np.where(inside, scales, 1).astype(np.float16)
    return np.where(inside, halves.astype(np.float32), scales)


def covering_scales(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same, but none smaller than it was: no weight is cut for it."""
    nearest = short_scales(scales)
    halves = np.where(nearest < scales, nearest, 1).astype(np.float16)
    halves.view(np.uint16)[...] += 1  # of positive numbers the next in order is the next in size
    return np.where(nearest < scales, halves.astype(np.float32), nearest)


def compact(scales: NDArray[np.float32]) -> NDArray[np.float16] | NDArray[np.float32]:
    """Scales in two bytes each, where none of them changes by that."""
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16)
    return halves if np.array_equal(halves.astype(np.float32), scales) else scales


def packed_blocks(
    values: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32] | None,
    bits: int,
) -> Blocks:
    """Integers, scales and zero points in the layout of `Blocks`.

    Args:
        values: [N, C * B], each below 2^bits.
        scales: [N, C].
        zeros: [N, C], whole numbers below 2^bits; None: 2^(bits-1) everywhere.
        bits: 4 or 8.
    """
    rows, count = scales.shape
    return Blocks(
        _pack(values, bits).reshape(rows, count, -1),
        scales,
        None if zeros is None else _pack(zeros.astype(np.uint8), bits),
    )


def unpacked_blocks(blocks: Blocks, columns: int, bits: int) -> NDArray[np.float32]:
    """The matrix [N, columns] that a rounded one stands for."""
    values = centred_blocks(blocks, bits).astype(np.float32)
    values *= blocks.scales[:, :, None]
    return values.reshape(len(values), -1)[:, :columns]


def centred_blocks(blocks: Blocks, bits: int) -> NDArray[np.int16]:
    """The integers of a rounded matrix less their zero points, [N, C, B]."""
    rows, count = blocks.scales.shape
    values = _unpack(blocks.packed.reshape(rows, -1), bits).reshape(rows, count, -1).astype(np.int16)
    values -= unpacked_zeros(blocks, bits)[:, :, None]
    return values


def unpacked_zeros(blocks: Blocks, bits: int) -> NDArray[np.uint8]:
    """The zero points of a rounded matrix, [N, C]."""
    rows, count = blocks.scales.shape
    if blocks.zero_points is None:
        return np.full((rows, count), 1 << (bits - 1), np.uint8)
    return _unpack(blocks.zero_points, bits)[:, :count]


def quantize_channels(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a matrix to nearest, every row with one scale: weight ≈ quantized * scale, symmetric.

    Args:
        weight: [N, K].

    Returns:
        int8 [N, K] within ±127, and scales [N].

    Raises:
        ExportError: a row has no finite scale.
    """
    scales = np.abs(weight).max(axis=1) / np.float32(127)
    if not np.isfinite(scales).all():
        raise ExportError("a weight is NaN or infinite, so it has no quantized form: check the checkpoint")
    scales[scales < SMALLEST_SCALE] = 1
    values = weight / scales[:, None]
    np.rint(values, out=values)
    return values.astype(np.int8), scales


def _pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Rows of integers as rows of bytes: [N, M] → [N, ceil(M * bits / 8)]."""
    if bits == 8:
        return values
    if values.shape[1] % 2:
        values = np.pad(values, ((0, 0), (0, 1)))
    low, high = values[:, 0::2], values[:, 1::2]
    return np.asarray(low | high << np.uint8(4), np.uint8)


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Rows of bytes as rows of integers: [N, M] → [N, M * 8 / bits]."""
    if bits == 8:
        return packed
    return np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(len(packed), -1)
