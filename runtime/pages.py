"""Arrays in pages of their own, which take memory where they are used alone.

An anonymous page takes it from its first write on. Zeros of the C library may lie in what was freed before
and has to be cleared, so that a cache takes its full size before its first token; and what is freed there
stays with the process. These pages go back at once. A page of a mapped file takes memory from its first read
on, and may leave again (`leave`).
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from typing import BinaryIO

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


def mapped(file: BinaryIO) -> mmap.mmap:
    """A file's bytes, to be read alone. They outlive its name and its descriptor.

    Whoever cuts the file short while it is mapped ends the process (SIGBUS), as with the weights that ONNX
    Runtime maps: replace it by a rename, which leaves the mapped one as it is.

    Raises:
        OSError: the file cannot be mapped.
        ValueError: it is empty.
    """
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def leave(pages: mmap.mmap) -> None:
    """Let a mapped file's pages leave the resident set: they stay in the system's cache of the file.

    Reading brings them back as they are, also for a thread that reads at this moment. Windows has no such
    call; it takes pages back by itself.
    """
    if sys.platform != "win32":
        pages.madvise(mmap.MADV_DONTNEED)


def give_back() -> None:
    """Return what was freed to the system, where the C library is one that otherwise keeps it (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
