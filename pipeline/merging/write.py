"""Blocks of rows: read once, summed, written, read back and proved, side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

from threadpoolctl import threadpool_limits

from export.weights import read_rows
from pipeline.merging.plan import Merged
from pipeline.merging.proof import NOTHING, Proof, prove, prove_copy
from pipeline.merging.shard import Shard
from pipeline.merging.update import Opened, opened, start_rows, summed
from pipeline.stage import Progress
from runtime.errors import AdapterError

_THREADS = 2
_IN_FLIGHT = 2 * _THREADS
"""Blocks at work or waiting: enough for no thread to idle, few enough for memory not to grow."""
_FLUSH_BLOCKS = 128
"""Blocks after which a third thread has the disk take what was written: it works while the others compute."""


def write_shards(files: Mapping[str, Sequence[Merged]], folder: Path, progress: Progress) -> dict[str, Proof]:
    """Write every file and prove every element of it.

    Args:
        files: name → tensors in order.
        folder: where the files go. Whole ones that are there already are kept if they prove.
        progress: told of every tensor.

    Returns:
        The proof of each tensor.

    Raises:
        CheckpointError: the base cannot be read, or the disk refuses.
        AdapterError: an element is not what it should be, or cannot be stored.
    """
    proofs: dict[str, Proof] = {}
    total = sum(map(len, files.values()))
    # Blocks are worked on side by side; a BLAS that splits each of them again only waits for itself.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(_THREADS) as pool:
        for file, tensors in files.items():
            for name, proof in _write(folder / file, tensors, pool):
                proofs[name] = proofs.get(name, NOTHING) + proof
                progress("merging", len(proofs), total)
    return proofs


def _write(path: Path, tensors: Sequence[Merged], pool: Executor) -> Iterator[tuple[str, Proof]]:
    """One file: the proof of each block, as it is written; of a kept file, once all of it is proved."""
    shard = Shard(path, tensors)
    found: list[tuple[str, Proof]] = []
    flushed: list[Future[None]] = []
    try:
        # Closed before the file is: a block still at work would write into whatever is opened next.
        with ThreadPoolExecutor(1) as disk, closing(_proofs(shard, tensors, pool)) as proofs:
            for each in proofs:
                found.append(each)
                if not shard.whole:
                    if len(found) % _FLUSH_BLOCKS == 0:
                        flushed.append(disk.submit(shard.flush))
                    yield each
        for done in flushed:
            done.result()
        shard.finish()
    except AdapterError:
        shard.abandon()
        if not shard.whole:
            raise
        yield from _write(path, tensors, pool)  # left by another merge: made anew
        return
    except BaseException:
        if not shard.whole:
            shard.abandon()
        raise
    if shard.whole:
        yield from found


def _proofs(
    shard: Shard, tensors: Sequence[Merged], pool: Executor
) -> Generator[tuple[str, Proof], None, None]:
    """The proof of each block, in order; those at work are waited for before an error goes on."""
    waiting: deque[tuple[str, Future[Proof]]] = deque()
    try:
        for tensor in tensors:
            one = None if tensor.copied else opened(tensor)
            for rows in tensor.blocks():
                waiting.append((tensor.name, pool.submit(_block, shard, tensor, one, *rows)))
                if len(waiting) == _IN_FLIGHT:
                    name, done = waiting.popleft()
                    yield name, done.result()
        while waiting:
            name, done = waiting.popleft()
            yield name, done.result()
    finally:
        for _, rest in waiting:
            rest.cancel()
        wait([rest for _, rest in waiting])


def _block(shard: Shard, tensor: Merged, one: Opened | None, start: int, stop: int) -> Proof:
    if one is None:
        assert tensor.start is not None
        original = read_rows(tensor.start, tensor.name, start, stop)
        if not shard.whole:
            shard.write(tensor.name, start, original)
        return prove_copy(tensor, original, shard.read(tensor.name, start, stop))
    begin = start_rows(tensor, start, stop)
    if not shard.whole:
        shard.write(tensor.name, start, summed(one, begin, start, stop))
    return prove(one, begin, shard.read(tensor.name, start, stop), start, stop)
