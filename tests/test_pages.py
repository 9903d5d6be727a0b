"""Arrays in pages of their own: they hold what they should, and take memory where they were written alone."""

from __future__ import annotations

import gc
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.pages import copied, give_back, zeros

MB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * mmap.PAGESIZE


def present(array: np.ndarray) -> int:
    """Bytes of an array that have memory, whatever else the process holds (proc(5), pagemap)."""
    first, count = array.ctypes.data // mmap.PAGESIZE, array.nbytes // mmap.PAGESIZE
    with Path("/proc/self/pagemap").open("rb") as pages:
        pages.seek(8 * first)
        entries = np.frombuffer(pages.read(8 * count), np.uint64)
    return int((entries >> np.uint64(63)).sum()) * mmap.PAGESIZE


@linux
def test_zeros_take_memory_where_they_are_written() -> None:
    before = resident()
    cache = zeros((64, MB), np.uint8)
    assert not cache.any()  # read, every page of it
    assert resident() - before < 8 * MB
    cache[:16] = 1
    assert 12 * MB < resident() - before < 24 * MB
    del cache
    assert resident() - before < 8 * MB


@linux
def test_a_copy_leaves_pages_of_zeros_out() -> None:
    values = np.zeros((32, MB // 4), np.float32)
    values[:, : MB // 8] = 1  # the first half of every row, as in a B of two parts
    copy = copied(values)
    assert present(copy) == 16 * MB
    assert (copy == values).all()


@pytest.mark.parametrize("shape", [(0, 3), (1,), (3, 1023), (5, 1025), (2, 3, 4096)])
@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float32])
def test_a_copy_is_a_copy(shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    values = np.random.default_rng(0).integers(-2, 2, shape).astype(dtype)
    for given in (values, values.T):
        copy = copied(given)
        assert (copy.dtype, copy.shape) == (given.dtype, given.shape)
        assert copy.tobytes() == given.tobytes()
        assert copy.flags.c_contiguous
        assert copy.flags.writeable
        assert not np.shares_memory(copy, given)


@linux
def test_what_was_freed_is_given_back() -> None:
    before = resident()
    held = [np.ones(MB // 32, np.uint8) for _ in range(64 * 32)]
    kept = held[-1]  # on top of the heap, so that what lies below is not trimmed by itself
    del held
    gc.collect()
    give_back()
    assert resident() - before < 16 * MB
    assert kept.all()
