"""Arrays in anonymous pages of their own: a page takes memory from its first write on, and none before.

Zeros of the C library may lie in what was freed before and has to be cleared, so that a cache takes its full
size before its first token; and what is freed there stays with the process. These pages go back at once.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys

import numpy as np
from numpy.typing import DTypeLike, NDArray


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
    """Zeros that take no memory until they are written; reading them takes none either."""
    count = math.prod(shape)
    if sys.platform == "win32" or count == 0:  # Windows gives private pages to nobody
        return np.zeros(shape, dtype)
    # Private, because pages that could be shared are there as soon as they are read.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pages = mmap.mmap(-1, count * np.dtype(dtype).itemsize, flags=flags)
    return np.frombuffer(pages, dtype, count).reshape(shape)


def copied(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """A copy, of which the pages that hold nothing but zeros take no memory."""
    copy = zeros(values.shape, values.dtype)
    source = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    target = copy.reshape(-1).view(np.uint8)
    whole = source.size - source.size % mmap.PAGESIZE
    pages = source[:whole].reshape(-1, mmap.PAGESIZE)
    used = pages.any(axis=1)
    target[:whole].reshape(-1, mmap.PAGESIZE)[used] = pages[used]
    target[whole:] = source[whole:]
    return copy


def give_back() -> None:
    """Return what was freed to the system, where the C library is one that otherwise keeps it (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
