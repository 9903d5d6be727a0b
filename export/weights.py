"""Tensors of a safetensors checkpoint, read and written one at a time.

The format (https://github.com/huggingface/safetensors#format): eight bytes with the header's length
(unsigned, little-endian); the header, a JSON object `{name: {"dtype", "shape", "data_offsets"}}` whose
offsets count from the header's end and may be followed by spaces; then the tensors' bytes, row-major,
little-endian, without holes or overlaps.

Files are read, not mapped: mapped pages count as resident memory, and a peak of a few tensors
instead of the whole model is part of what this module promises.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from runtime.errors import CheckpointError

Array = NDArray[np.generic]

DTYPES: dict[str, np.dtype[np.generic]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""Element types by their name in a safetensors header."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}

EXPONENT_MASKS = {"F64": 0x7FF0_0000_0000_0000, "F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80}
"""All exponent bits set is NaN or infinity: a test on integers, one pass for every float type."""

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
CHECKED_VALUES = 1 << 20
"""Values tested for NaN at a time, so that the test needs no second copy of a tensor."""


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies."""

    file: Path
    dtype: str
    """A key of `DTYPES`."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Checkpoint:
    """The tensors of a checkpoint directory: `model.safetensors`, or the shards its index names.

    Opening reads and checks every header; tensor bytes are read when asked for, and not kept.

    Raises:
        CheckpointError: there are no safetensors, or a header is damaged, or a tensor that the index
            promises is missing or stored twice.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.metadata: dict[str, str] = {}
        self._tensors: dict[str, Tensor] = {}
        promised, files = _files(directory)
        for file in files:
            tensors, metadata = read_header(file)
            self.metadata |= metadata
            for name, tensor in tensors.items():
                if name in self._tensors:
                    other = self._tensors[name].file.name
                    raise CheckpointError(f'tensor "{name}" is stored twice, in {other} and in {file.name}')
                self._tensors[name] = tensor
        if missing := sorted(promised - self._tensors.keys()):
            raise CheckpointError(f"{directory / INDEX} promises tensors that no shard has: {_few(missing)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor's name, in the order of the files."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.tensor(name).shape

    def dtype(self, name: str) -> np.dtype[np.generic]:
        """Element type as stored (bfloat16 is ml_dtypes')."""
        return DTYPES[self.tensor(name).dtype]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """A tensor as stored, or its rows [start, stop) along the first axis; always a fresh array.

        Raises:
            CheckpointError: there is no such tensor, the file ends early, or a value is NaN or infinite.
        """
        return read_rows(self.tensor(name), name, start, stop)

    def read_float32(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """`read`, converted to float32.

        Raises:
            CheckpointError: as `read`, or the tensor does not hold floats that float32 can express.
        """
        values = self.read(name, start, stop)
        kind = self.tensor(name).dtype
        if kind not in EXPONENT_MASKS or kind == "F64":
            raise CheckpointError(f'tensor "{name}" is {kind}; weights must be F32, F16 or BF16')
        return np.asarray(values, np.float32)

    def tensor(self, name: str) -> Tensor:
        """Where a tensor lies.

        Raises:
            CheckpointError: there is no such tensor.
        """
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f'{self.directory} has no tensor "{name}"') from None


def read_header(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of one safetensors file in the order of their bytes, and its free-form metadata.

    Raises:
        CheckpointError: the header is damaged or does not account for every byte of the file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise CheckpointError(f"{file} is cut short or no safetensors file: fetch it again")
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the header of {file} is damaged: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"the header of {file} is damaged: not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"the header of {file} is damaged: __metadata__ is not a map of strings")
    data = 8 + length
    tensors = {name: _tensor(file, name, entry, data) for name, entry in header.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)))
    end = data
    for name, tensor in tensors.items():
        if tensor.offset != end:
            raise CheckpointError(
                f'the header of {file} is damaged: "{name}" overlaps its neighbour or leaves a hole'
            )
        end += tensor.nbytes
    if end != size:
        raise CheckpointError(f"{file} has {size} bytes but its header describes {end}: fetch it again")
    return tensors, metadata


def read_rows(tensor: Tensor, name: str, start: int = 0, stop: int | None = None) -> Array:
    """A tensor as stored, or its rows [start, stop) along the first axis; always a fresh array.

    Raises:
        CheckpointError: the file ends early, or a value is NaN or infinite.
    """
    dtype = DTYPES[tensor.dtype]
    shape, offset = tensor.shape, tensor.offset
    if shape:
        first, last, _ = slice(start, stop).indices(shape[0])
        row = math.prod(shape[1:]) * dtype.itemsize
        shape, offset = (max(last - first, 0), *shape[1:]), offset + first * row
    values = np.empty(math.prod(shape), dtype)
    try:
        with tensor.file.open("rb") as file:
            file.seek(offset)
            got = file.readinto(values.view(np.uint8).data)
    except OSError as error:
        raise CheckpointError(f"cannot read {tensor.file}: {error}") from error
    if got != values.nbytes:
        raise CheckpointError(f'{tensor.file} ends inside tensor "{name}": fetch the checkpoint again')
    if tensor.dtype in EXPONENT_MASKS and not _all_finite(values, EXPONENT_MASKS[tensor.dtype]):
        raise CheckpointError(f'tensor "{name}" of {tensor.file} has NaN or infinite values')
    return values.reshape(shape)


class SafetensorsWriter:
    """Writes one safetensors file whose tensors are declared first and appended in that order.

    The bytes go to `<name>.partial`, which becomes `<name>` when the last byte is on the disk;
    an abandoned or failed writer leaves no file. Use as a context manager.

    Args:
        path: the file to make.
        tensors: element type and shape of each tensor, in the order they will be written.
        metadata: free-form strings; transformers wants `{"format": "pt"}`.

    Raises:
        CheckpointError: an element type has no name in the format, or the disk refuses.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[np.dtype[np.generic], Sequence[int]]],
        metadata: Mapping[str, str],
    ) -> None:
        self.path = path
        self._partial = path.with_name(path.name + ".partial")
        raw = header_bytes(tensors, metadata)
        self._pending = [
            (name, dtype, math.prod(shape) * dtype.itemsize) for name, (dtype, shape) in tensors.items()
        ]
        self._pending.reverse()
        try:
            self._file = self._partial.open("wb")
            self._file.write(raw)
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error}") from error

    def append(self, name: str, values: Array) -> None:
        """Write a tensor, or the next rows of one; its last row completes it.

        Raises:
            CheckpointError: the disk refuses.
            ValueError: `name` is not the tensor whose turn it is, or type or size are not as declared.
        """
        self._skip_empty(name)
        if not self._pending or self._pending[-1][0] != name:
            raise ValueError(f"{name} is written out of turn")
        _, dtype, left = self._pending[-1]
        if values.dtype != dtype or values.nbytes > left:
            raise ValueError(
                f"{name}: {values.dtype} of {values.nbytes} bytes; declared {dtype}, {left} left"
            )
        try:
            self._file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error}") from error
        if values.nbytes == left:
            self._pending.pop()
        else:
            self._pending[-1] = (name, dtype, left - values.nbytes)

    def close(self) -> None:
        """Put the file in its place.

        Raises:
            CheckpointError: the disk refuses.
            ValueError: a declared tensor was not written, or not whole.
        """
        self._skip_empty(None)
        if self._pending:
            self.abort()
            raise ValueError(f"{self._pending[-1][0]} was declared but not written whole")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._partial.replace(self.path)
        except OSError as error:
            self.abort()
            raise CheckpointError(f"cannot write {self.path}: {error}") from error

    def abort(self) -> None:
        """Give up: remove what was written."""
        try:
            self._file.close()
        except OSError:
            pass  # closing flushes, which a full disk refuses; the file goes either way
        finally:
            self._partial.unlink(missing_ok=True)

    def _skip_empty(self, until: str | None) -> None:
        """Tensors without elements complete themselves, unless one is about to be written."""
        while self._pending and self._pending[-1][2] == 0 and self._pending[-1][0] != until:
            self._pending.pop()

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def header_bytes(
    tensors: Mapping[str, tuple[np.dtype[np.generic], Sequence[int]]], metadata: Mapping[str, str]
) -> bytes:
    """What a safetensors file begins with: the length of its header, and the header.

    Raises:
        CheckpointError: an element type has no name in the format.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in tensors.items():
        if dtype not in NAMES:
            raise CheckpointError(f'tensor "{name}": safetensors cannot store {dtype}')
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _files(directory: Path) -> tuple[set[str], list[Path]]:
    """Names that an index promises, and the files to read: the single file first, as transformers does."""
    if (directory / SINGLE).is_file():
        return set(), [directory / SINGLE]
    index = directory / INDEX
    if not index.is_file():
        raise CheckpointError(f"{directory} has no {SINGLE} and no {INDEX}: save the model as safetensors")
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        shards = {name: str(shard) for name, shard in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged: it has no readable weight_map") from error
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard or not (directory / shard).is_file():
            raise CheckpointError(f'{index} names the shard "{shard}", which is not a file beside it')
    return set(shards), [directory / shard for shard in sorted(set(shards.values()))]


def _tensor(file: Path, name: str, entry: object, data: int) -> Tensor:
    """One entry of a header, checked against itself; `data` is where the tensors' bytes start."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]}:
            if not all(type(n) is int and n >= 0 for n in shape) or not 0 <= begin <= end:
                raise CheckpointError(f'the header of {file} is damaged at "{name}"')
            if dtype not in DTYPES:
                raise CheckpointError(
                    f'tensor "{name}" of {file} has type {dtype}; known: {", ".join(DTYPES)}'
                )
            tensor = Tensor(file, dtype, tuple(shape), data + begin)
            if tensor.nbytes != end - begin:
                raise CheckpointError(f'the header of {file} is damaged: "{name}" has not its shape\'s size')
            return tensor
    raise CheckpointError(f'the header of {file} is damaged at "{name}"')


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object that may not name a tensor twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f'"{next(n for n in names if names.count(n) > 1)}" is stored twice')
    return found


def _all_finite(values: Array, mask: int) -> bool:
    bits = values.view(np.dtype(f"u{values.itemsize}"))
    exponent = bits.dtype.type(mask)
    return not any(
        bool(np.any((bits[at : at + CHECKED_VALUES] & exponent) == exponent))
        for at in range(0, bits.size, CHECKED_VALUES)
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
