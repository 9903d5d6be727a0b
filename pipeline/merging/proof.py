"""Every element of a written tensor, held against its definition in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.weights import Array
from pipeline.merging.plan import Merged
from pipeline.merging.update import Float32, Opened, row_norms
from runtime.errors import AdapterError

FLOAT32_BITS = 23
FORMATS = {"float32": (FLOAT32_BITS, -126), "float16": (10, -14), "bfloat16": (7, -126)}
"""Stored bits of the significand and smallest exponent: ulp(x) = 2^(max(exponent of x, smallest) − bits)."""

_ROUNDING = 2.0**-24
"""Largest relative error of one float32 operation."""


@dataclass(frozen=True)
class Proof:
    """How the rows of one merged tensor compare with their definition.

    Attributes:
        max_error: largest distance, as a share of what rounding explains: at most 1.
        update_square: ‖W − W0‖² (Frobenius).
        base_square: ‖W0‖².
    """

    max_error: float
    update_square: float
    base_square: float

    def __add__(self, other: Proof) -> Proof:
        return Proof(
            max(self.max_error, other.max_error),
            self.update_square + other.update_square,
            self.base_square + other.base_square,
        )

    @property
    def relative_update(self) -> float:
        """‖W − W0‖ / ‖W0‖; infinite where W0 is zero."""
        return (self.update_square / self.base_square) ** 0.5 if self.base_square else float("inf")


NOTHING = Proof(0.0, 0.0, 0.0)


def prove_copy(tensor: Merged, begin: Array, stored: Array) -> Proof:
    """Rows that have no update have the bytes they come from.

    Raises:
        AdapterError: they differ.
    """
    if not np.array_equal(begin.reshape(-1).view(np.uint8), stored.reshape(-1).view(np.uint8)):
        raise AdapterError(f'tensor "{tensor.name}" has no update but differs from the base; merge again')
    return NOTHING


def prove(one: Opened, begin: Float32, stored: Array, start: int, stop: int) -> Proof:
    """Rows of a sum lie where float64 puts them.

    The tolerance is half an ulp plus what float32 can lose. Of a sum: every operation of the product over
    ranks rounds to 2⁻²⁴ of |B||A| at most, the scale folded in; adding W0 rounds to 2⁻²⁴ of the sum, which
    in float32 is the half ulp itself. DoRA multiplies all that by length / norm, and the norm is off by at
    most the norm of the sum's own tolerance.

    Args:
        one: the tensor.
        begin: its `start_rows`.
        stored: what the file has.
        start: first row.
        stop: behind the last row.

    Raises:
        AdapterError: an element is further off than rounding explains.
    """
    values = np.asarray(stored, np.float32).reshape(begin.shape)
    left, right = one.left[start:stop], one.right
    exact = left @ right
    update_square = float(np.vdot(exact, exact))
    exact += begin
    tolerance = _rounding_once(values, one.tensor.dtype.name)
    if left.shape[1]:
        # |B||A| without a product of matrices: no row times a column is more than their lengths' product.
        rows = ((left.shape[1] + 3) * _ROUNDING * row_norms(left)).astype(np.float32)
        reach = rows * np.sqrt(np.square(right).sum(axis=0)).astype(np.float32)
        if one.lengths is not None:
            reach += np.float32(_ROUNDING) * np.abs(exact).astype(np.float32)
            norms = row_norms(exact) if one.norms is None else one.norms
            factor = (one.lengths[start:stop] if one.norms is None else one.lengths) / norms
            off = row_norms(reach) / norms if one.norms is None else 0.0
            exact *= factor
            reach *= np.abs(factor).astype(np.float32)
            reach += np.abs(exact).astype(np.float32) * np.asarray(off + 4 * _ROUNDING, np.float32)
            difference = exact - begin
            update_square = float(np.vdot(difference, difference))
        tolerance += reach
    exact -= values
    error = exact.astype(np.float32)
    np.abs(error, out=error)
    error /= tolerance
    worst = float(error.max(initial=0.0))
    if not worst <= 1.0:
        row, column = np.unravel_index(np.argmax(error), error.shape)
        at = [int(start + row), int(column)][: len(one.tensor.shape)]
        raise AdapterError(
            f'merged tensor "{one.tensor.name}" is not what the adapter makes of W0 at {at}: '
            f"off by {abs(exact[row, column]):.3g} where rounding explains {tolerance[row, column]:.3g}; "
            "merge again"
        )
    return Proof(worst, update_square, float(np.vdot(begin, begin)))


def _rounding_once(values: Float32, dtype: str) -> Float32:
    """What rounding to a type explains: half the unit of the last place, which the exponent alone gives; in
    a narrow type also the float32 sum that was rounded, 2⁻²² of the exponent's power.

    Below the normal range it is the whole unit: half of float32's smallest number is none.
    """
    bits, smallest = FORMATS[dtype]
    power = (values.view(np.uint32) & np.uint32(0x7F80_0000)).view(np.float32)
    np.maximum(power, np.float32(2.0 ** (smallest + 1)), out=power)
    power *= np.float32(2.0 ** (-bits - 1) + (4 * _ROUNDING if bits < FLOAT32_BITS else 0.0))
    return power
