"""GPTQ (arXiv 2210.17323): rounding that makes up for its own errors.

A product W x is wrong by (W - Ŵ) x, whose square over many x is tr(dW H dWᵀ) with H = Σ x xᵀ. Columns are
rounded one after the other, and what a column's rounding adds to the product is taken out again, as far as
the later columns can, by H⁻¹. Rounding to nearest is what is left of it where inputs do not correlate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.quantize import SMALLEST_SCALE, Blocks, covering_scales, packed_blocks
from runtime.errors import ExportError

DAMPING = 0.05
"""Added to H's diagonal, times its mean: directions that the sample hardly has are not to be relied on."""
PANEL = 512
"""Columns that are factorized at a time: of thousands, little more than one copy is then in memory."""
SHRINKAGE = np.linspace(1.0, 0.6, 9, dtype=np.float32)
"""Shares of a block's range that its integers may span: large outliers are cut where that pays."""


def gptq(
    weight: NDArray[np.float32],
    factor: NDArray[np.float32],
    bits: int,
    block_size: int,
    symmetric: bool,
) -> Blocks:
    """Round a matrix block by block so that its products with what it was calibrated on change least.

    Args:
        weight: [N, K].
        factor: [K, K], what `error_factor` makes of the sum of x xᵀ over inputs x.
        bits: 4 or 8.
        block_size: B, a power of two of at least 16.
        symmetric: leave the zero point at 2^(bits-1).

    Raises:
        ExportError: a weight is NaN or infinite.
    """
    rows, columns = weight.shape
    if not np.isfinite(weight).all():
        raise ExportError("a weight is NaN or infinite, so it has no quantized form: check the checkpoint")
    padding = -columns % block_size
    left = np.pad(weight, ((0, 0), (0, padding))).T.copy()  # columns lie as rows, each read as a whole
    if padding:
        factor = np.pad(factor, (0, padding))
        factor[range(columns, len(left)), range(columns, len(left))] = 1
    count = len(left) // block_size
    quantized = np.empty((len(left), rows), np.uint8)
    scales, zeros = np.empty((count, rows), np.float32), np.empty((count, rows), np.float32)
    top = np.float32((1 << bits) - 1)
    for number, start in enumerate(range(0, len(left), block_size)):
        stop = start + block_size
        block, inner = left[start:stop], factor[start:stop, start:stop]
        importance = np.asarray(1 / np.square(np.diagonal(inner)), np.float32)
        scale, zero = _best_scales(block, importance, bits, symmetric)
        errors = np.empty_like(block)
        for at in range(block_size):
            integers = np.clip(np.rint(block[at] / scale) + zero, 0, top)
            quantized[start + at] = integers
            errors[at] = (block[at] - (integers - zero) * scale) / inner[at, at]
            block[at + 1 :] -= inner[at, at + 1 :, None] * errors[at]
        left[stop:] -= factor[start:stop, stop:].T @ errors
        scales[number], zeros[number] = scale, zero
    return packed_blocks(
        np.ascontiguousarray(quantized.T),
        np.ascontiguousarray(scales.T),
        None if symmetric else np.ascontiguousarray(zeros.T),
        bits,
    )


def damped(hessian: NDArray[np.floating]) -> NDArray[np.float64]:
    """H with more on its diagonal, [K, K], so that it has an inverse and means something everywhere.

    Args:
        hessian: H, [K, K], the sum of x xᵀ over inputs x.

    Raises:
        ExportError: an input is NaN or infinite.
    """
    if not np.isfinite(hessian).all():
        raise ExportError("an activation is NaN or infinite, so it cannot be calibrated on")
    work = np.array(hessian, np.float64)
    diagonal = range(len(work))
    work[diagonal, diagonal] += DAMPING * (float(np.diagonal(work).mean()) or 1.0)
    return work


def error_factor(hessian: NDArray[np.floating]) -> NDArray[np.float32]:
    """The upper factor U of (H + damping)⁻¹ = UᵀU; [K, K].

    Args:
        hessian: H, [K, K], the sum of x xᵀ over inputs x.

    Raises:
        ExportError: an input is NaN or infinite.
    """
    # H = LLᵀ with rows and columns in reverse gives U = L⁻¹ in reverse, without H⁻¹ and its rounding.
    work = damped(hessian[::-1, ::-1])
    _invert_cholesky(work)
    return np.ascontiguousarray(work[::-1, ::-1], np.float32)


def _invert_cholesky(work: NDArray[np.float64]) -> None:
    """H = LLᵀ → L⁻¹, in place and panel by panel (Golub and Van Loan, Matrix Computations, 4.2.9)."""
    panels = [slice(start, start + PANEL) for start in range(0, len(work), PANEL)]
    for panel in panels:
        above, below = slice(0, panel.start), slice(panel.stop, None)
        work[panel.start :, panel] -= work[panel.start :, above] @ work[panel, above].T
        work[panel, panel] = np.linalg.cholesky(work[panel, panel])
        work[below, panel] = work[below, panel] @ np.linalg.inv(work[panel, panel]).T
    for panel in panels:
        above = slice(0, panel.start)
        work[panel, panel] = np.linalg.inv(work[panel, panel])
        work[panel, above] = -work[panel, panel] @ (work[panel, above] @ work[above, above])
        work[above, panel] = 0


def _best_scales(
    block: NDArray[np.float32], importance: NDArray[np.float32], bits: int, symmetric: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of each row's block (B, N) the scale and zero point (N,) of least error, weighed by importance (B,)."""
    top = np.float32((1 << bits) - 1)
    middle = np.float32(1 << (bits - 1))
    low, high = np.minimum(block.min(axis=0), 0), np.maximum(block.max(axis=0), 0)
    widest = np.maximum(high, -low) / (middle - 1) if symmetric else high / top - low / top
    least = np.full(block.shape[1], np.inf, np.float32)
    scales, zeros = np.ones_like(widest), np.full_like(widest, middle)
    for share in SHRINKAGE:
        scale = widest * share
        scale[scale < SMALLEST_SCALE] = 1
        scale = covering_scales(scale)
        zero = np.full_like(scale, middle) if symmetric else np.clip(np.rint(-low * share / scale), 0, top)
        rounded = np.clip(np.rint(block / scale) + zero, 0, top)
        error = importance @ np.square((rounded - zero) * scale - block)
        better = error < least
        least[better], scales[better], zeros[better] = error[better], scale[better], zero[better]
    return scales, zeros
