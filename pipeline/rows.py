"""Rows of a tensor, a few megabytes at a time, so that memory does not grow with the tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

BLOCK_ELEMENTS = 1 << 20
"""Elements of one block: 8 MB in float64, which third-level caches hold."""


def row_blocks(shape: Sequence[int], elements: int = BLOCK_ELEMENTS) -> Iterator[tuple[int, int]]:
    """Ranges [start, stop) of the first axis that hold at most `elements`, or one row where a row is more.

    A scalar is one block.
    """
    if not shape:
        yield 0, 1
        return
    step = max(1, elements // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
