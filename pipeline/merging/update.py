"""The values of one merged tensor, a block of rows at a time: summed in float32, rounded once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.weights import Array, read_rows
from pipeline.adapter import read_values
from pipeline.merging.plan import Merged
from pipeline.nf4 import dequantize, quantize
from runtime.errors import AdapterError

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

LARGEST = {"float32": float(np.finfo(np.float32).max), "float16": 65504.0, "bfloat16": 2.0**128 - 2.0**120}


@dataclass(frozen=True)
class Opened:
    """A merged tensor with what is added to it read. A vector counts as a matrix of one column.

    Attributes:
        tensor: what it is made of.
        left: of shape (rows, rank), scale included.
        right: of shape (rank, columns).
        lengths: DoRA's lengths: (rows, 1), or (1, columns) of an embedding.
        norms: what `lengths` of columns are to be divided by, (1, columns); rows have theirs in their block.
    """

    tensor: Merged
    left: Float64
    right: Float64
    lengths: Float64 | None
    norms: Float64 | None


def opened(tensor: Merged) -> Opened:
    """Read the factors of a tensor, several adapters' one behind the other.

    Raises:
        CheckpointError: the base cannot be read.
        AdapterError: a column whose length is trained has none.
    """
    pairs = [factors.read() for factors in tensor.factors]
    columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
    rows = tensor.shape[0] if tensor.shape else 1
    left = np.concatenate([np.zeros((rows, 0)), *(pair[0] for pair in pairs)], axis=1)
    right = np.concatenate([np.zeros((0, columns)), *(pair[1] for pair in pairs)])
    if tensor.magnitude is None:
        return Opened(tensor, left, right, None, None)
    lengths = read_values(tensor.magnitude).astype(np.float64)
    if not tensor.per_column:
        return Opened(tensor, left, right, lengths[:, None], None)
    squares = np.zeros((1, columns))
    for start, stop in tensor.blocks():
        exact = left[start:stop] @ right + start_rows(tensor, start, stop)
        squares += np.square(exact).sum(axis=0, keepdims=True)
    norms = np.sqrt(squares)
    _refuse_zero(tensor, norms)
    return Opened(tensor, left, right, lengths[None, :], norms)


def start_rows(tensor: Merged, start: int, stop: int) -> Float32:
    """Rows of what sums are added to: of shape (stop - start, columns).

    Raises:
        CheckpointError: they cannot be read, or are NaN or infinite.
    """
    columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
    if tensor.start is None:
        return np.zeros((stop - start, columns), np.float32)
    values = np.asarray(read_rows(tensor.start, tensor.name, start, stop), np.float32)
    values = values.reshape(stop - start, columns)
    return dequantize(quantize(values)) if tensor.quantized else values


def summed(one: Opened, begin: Float32, start: int, stop: int) -> Array:
    """Rows of the merged tensor, of the shape and type they are stored in.

    Args:
        one: the tensor.
        begin: its `start_rows`.
        start: first row.
        stop: behind the last row.

    Raises:
        AdapterError: a value is beyond what the type can hold, or a row whose length is trained has none.
    """
    tensor = one.tensor
    total = one.left[start:stop].astype(np.float32) @ one.right.astype(np.float32)
    total += begin
    if one.lengths is not None:
        if one.norms is None:
            norms = row_norms(total)
            _refuse_zero(tensor, norms)
            total *= (one.lengths[start:stop] / norms).astype(np.float32)
        else:
            total *= (one.lengths / one.norms).astype(np.float32)
    if total.size and not max(total.max(), -total.min()) <= LARGEST[tensor.dtype.name]:
        raise AdapterError(
            f'"{tensor.name}" is beyond what {tensor.dtype} can hold once the adapter is added; '
            "merge onto a base in float32 or bfloat16"
        )
    return total.astype(tensor.dtype).reshape(stop - start, *tensor.shape[1:])


def row_norms(matrix: NDArray[np.floating]) -> Float64:
    """Euclidean length of each row, of shape (rows, 1), summed in float64."""
    norms: Float64 = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    return norms[:, None]


def _refuse_zero(tensor: Merged, norms: Float64) -> None:
    if not norms.all():
        raise AdapterError(
            f'"{tensor.name}" has a row or column of zeros, which no "use_dora" can give a length'
        )
