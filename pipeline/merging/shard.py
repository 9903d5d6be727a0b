"""One safetensors file, its rows written at their places in any order and read back from there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from export.weights import DTYPES, INDEX, SINGLE, Array, Checkpoint, Tensor, header_bytes, read_header
from pipeline.merging.plan import Merged
from runtime.errors import CheckpointError


class Shard:
    """A file under way: `<name>.partial`, which becomes `<name>` when all of it is proved and on the disk.

    A whole file of that name and layout, left by a merge that was stopped, is opened to be proved again
    instead of being written again.

    Args:
        path: the file to make.
        tensors: in the order they lie in the file.

    Raises:
        CheckpointError: the disk refuses.
    """

    def __init__(self, path: Path, tensors: Sequence[Merged]) -> None:
        self._path, self._partial = path, path.with_name(path.name + ".partial")
        header = header_bytes({each.name: (each.dtype, each.shape) for each in tensors}, {"format": "pt"})
        size = len(header) + sum(math.prod(each.shape) * each.dtype.itemsize for each in tensors)
        try:
            self.whole = _begins_with(path, header, size)
            place = path if self.whole else self._partial
            self._file = place.open("rb" if self.whole else "w+b", buffering=0)
            if not self.whole:
                self._file.write(header)
                self._file.truncate(size)
            self._places: Mapping[str, Tensor] = read_header(place)[0]
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error}") from error

    def write(self, name: str, start: int, values: Array) -> None:
        """Put rows of a tensor from row `start` on into their place.

        Raises:
            CheckpointError: the disk refuses.
        """
        content = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        at = self._offset(name, start)
        try:
            while content:
                done = os.pwrite(self._file.fileno(), content, at)
                content, at = content[done:], at + done
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error}") from error

    def read(self, name: str, start: int, stop: int) -> Array:
        """Rows of a tensor as the file has them, of shape (stop - start, …).

        Raises:
            CheckpointError: the file cannot be read.
        """
        place = self._places[name]
        values = np.empty((stop - start, *place.shape[1:]), DTYPES[place.dtype])
        content = values.reshape(-1).view(np.uint8).data
        at = self._offset(name, start)
        try:
            while content:
                done = os.preadv(self._file.fileno(), [content], at)
                if done == 0:
                    raise CheckpointError(f'{self._path} ends inside tensor "{name}"; merge again')
                content, at = content[done:], at + done
        except OSError as error:
            raise CheckpointError(f"cannot read {self._path}: {error}") from error
        return values

    def flush(self) -> None:
        """Put what was written so far on the disk.

        Raises:
            CheckpointError: the disk refuses.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error}") from error

    def finish(self) -> None:
        """Put the file in its place once it is on the disk.

        Raises:
            CheckpointError: the disk refuses.
        """
        if not self.whole:
            self.flush()
        try:
            self._file.close()
            if not self.whole:
                self._partial.replace(self._path)
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error}") from error

    def abandon(self) -> None:
        """Remove what was written, and a whole file that did not prove."""
        self._file.close()
        (self._path if self.whole else self._partial).unlink(missing_ok=True)

    def _offset(self, name: str, row: int) -> int:
        place = self._places[name]
        return place.offset + row * math.prod(place.shape[1:]) * DTYPES[place.dtype].itemsize


def shards(
    base: Checkpoint, tensors: Mapping[str, Merged], shard_bytes: int | None
) -> dict[str, list[Merged]]:
    """File name → its tensors in order.

    The base's own files, each with what is new for a layer it holds; or files of at most `shard_bytes`,
    or one tensor where that is more.
    """
    if shard_bytes is None:
        return _as_base(base, tensors)
    groups: list[list[Merged]] = [[]]
    filled = 0
    for tensor in tensors.values():
        size = math.prod(tensor.shape) * tensor.dtype.itemsize
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {
        f"model-{number:05}-of-{len(groups):05}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def write_index(files: Mapping[str, Sequence[Merged]], out: Path) -> None:
    """The index of several files; one file needs none."""
    if list(files) == [SINGLE]:
        return
    size = sum(math.prod(each.shape) * each.dtype.itemsize for tensors in files.values() for each in tensors)
    weight_map = {each.name: file for file, tensors in files.items() for each in tensors}
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _as_base(base: Checkpoint, tensors: Mapping[str, Merged]) -> dict[str, list[Merged]]:
    files: dict[str, list[Merged]] = {}
    for name in base.names:
        files.setdefault(base.tensor(name).file.name, []).append(tensors[name])
    for name, tensor in tensors.items():
        if name not in base.names:
            neighbour = f"{name.removesuffix('.bias')}.weight"
            beside = neighbour if neighbour in base.names else "model.embed_tokens.weight"
            files[base.tensor(beside).file.name].append(tensor)
    return files


def _begins_with(path: Path, header: bytes, size: int) -> bool:
    if not path.is_file() or path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return file.read(len(header)) == header
