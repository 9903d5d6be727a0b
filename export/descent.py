"""What GPTQ leaves is taken down further: integers one column at a time, then scales, in turn.

GPTQ settles a column before it has seen what becomes of the later ones. Going through all of them again, each
integer takes the value that is best with the others as they are (coordinate descent: QuantEase, arXiv
2309.01885), and given the integers the best scales of a row solve a least-squares problem of as many unknowns
as it has blocks. Neither step can make the error larger. The scales are then such as are stored in two bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.quantize import Blocks, centred_blocks, packed_blocks, short_scales, unpacked_zeros

ROUNDS = 2
COLUMNS = 64
"""Settled before their moves are told to all others."""
PRODUCTS = 1 << 24
"""Between blocks of the rows that are in memory at once: rows know nothing of each other."""
_RIDGE = 1e-6
"""Of the diagonal, towards the scales as they are: blocks may lie so that many scales do. All of it where a
block is zeros, which any scale does for."""


def descend(weight: NDArray[np.float32], blocks: Blocks, hessian: NDArray[np.float32], bits: int) -> Blocks:
    """A rounded matrix with integers and scales that are closer, in the same layout.

    The error is tr(dW H dWᵀ), dW the difference from `weight`.

    Args:
        weight: [N, K].
        blocks: what it was rounded to.
        hessian: H, [K, K], positive definite.
        bits: 4 or 8.
    """
    rows, count = blocks.scales.shape
    zeros, values = unpacked_zeros(blocks, bits), centred_blocks(blocks, bits).reshape(rows, -1)
    padding = values.shape[1] - weight.shape[1]
    if padding:
        weight = np.pad(weight, ((0, 0), (0, padding)))
        hessian = np.pad(hessian, (0, padding))
        hessian[range(-padding, 0), range(-padding, 0)] = 1
    top, step = np.float32((1 << bits) - 1), max(1, PRODUCTS // count**2)
    integers, scales = np.empty(values.shape, np.uint8), np.empty((rows, count), np.float32)
    for at in range(0, rows, step):
        part = slice(at, at + step)
        # Columns lie as rows, each read as a whole.
        wanted, here, zero, scale = (
            np.ascontiguousarray(each[part].T, np.float32) for each in (weight, values, zeros, blocks.scales)
        )
        for _ in range(ROUNDS):
            _move_integers(wanted, here, scale, zero, hessian, top)
            scale = _fitted(wanted, here, scale, hessian)
        raised = here.reshape(count, -1, here.shape[1]) + zero[:, None]
        integers[part], scales[part] = raised.reshape(here.shape).T, scale.T
    kept = None if blocks.zero_points is None else zeros.astype(np.float32)
    return packed_blocks(integers, short_scales(scales), kept, bits)


def _move_integers(
    wanted: NDArray[np.float32],
    values: NDArray[np.float32],
    scales: NDArray[np.float32],
    zeros: NDArray[np.float32],
    hessian: NDArray[np.float32],
    top: np.float32,
) -> None:
    """Each of the integers [K, N], less its zero point, to its best with the others as they are, in place."""
    count = len(scales)
    size = len(values) // count
    error = wanted - (values.reshape(count, size, -1) * scales[:, None]).reshape(values.shape)
    slope = hessian @ error
    for start in range(0, len(values), COLUMNS):
        inner = hessian[start : start + COLUMNS, start : start + COLUMNS]
        pull = slope[start : start + COLUMNS].copy()
        moved = np.empty_like(pull)
        for at in range(len(pull)):
            block, column = (start + at) // size, values[start + at]
            scale, zero = scales[block], zeros[block]
            best = np.clip(np.rint(column + pull[at] / (inner[at, at] * scale)), -zero, top - zero)
            moved[at] = (best - column) * scale
            values[start + at] = best
            pull[at + 1 :] -= inner[at, at + 1 :, None] * moved[at]
        slope -= hessian[:, start : start + COLUMNS] @ moved


def _fitted(
    wanted: NDArray[np.float32],
    values: NDArray[np.float32],
    scales: NDArray[np.float32],
    hessian: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The best scales [C, N] for the integers; a row of which one were not positive keeps its own."""
    count, rows = scales.shape
    blocks = values.reshape(count, -1, rows)
    size = blocks.shape[1]
    products = np.empty((count, count, rows), np.float32)
    for number in range(count):
        seen = hessian[:, number * size : (number + 1) * size] @ blocks[number]
        products[number] = (seen.reshape(blocks.shape) * blocks).sum(axis=1)
    target = ((hessian @ wanted).reshape(blocks.shape) * blocks).sum(axis=1)
    diagonal = np.arange(count)
    own = products[diagonal, diagonal]
    ridge = np.where(own > 0, _RIDGE * own, 1).astype(np.float32)
    products[diagonal, diagonal] = own + ridge
    target += ridge * scales
    try:
        found = np.linalg.solve(products.transpose(2, 0, 1), target.T[:, :, None])[:, :, 0].T
    except np.linalg.LinAlgError:  # two blocks are one to float32, in a row of very many
        return scales
    better = np.isfinite(found).all(axis=0) & (found > 0).all(axis=0)
    return np.where(better, found, scales).astype(np.float32)
