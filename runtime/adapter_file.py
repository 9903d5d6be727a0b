"""The tensors of an adapter file of ONNX Runtime, as views of its bytes: nothing is copied.

The file is a FlatBuffer (https://flatbuffers.dev/internals/) of the schema
onnxruntime/lora/adapter_format/adapter_schema.fbs: a table `Adapter` of three versions and its `Parameter`
tables, each with name, dims, data_type and raw_data. Every offset is held to the bytes before it is followed.
By the schema raw_data lies at a multiple of 8; what ONNX Runtime 1.32 writes lies at multiples of 4.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

_IDENTIFIER: Final = b"TORT"
_FORMAT_VERSION: Final = 1
_TYPES: Final[Mapping[int, type[np.generic]]] = {1: np.float32, 3: np.int8, 10: np.float16}
"""The schema's TensorDataType of what factors are stored in."""
_MOST_DIMENSIONS: Final = 2


def read_tensors(raw: memoryview) -> dict[str, NDArray[np.generic]]:
    """Name → tensor; each is a view of `raw`, and can be written to only if that can.

    Raises:
        ValueError: the bytes are not such a file, or hold a tensor that no adapter has.
    """
    if bytes(raw[4:8]) != _IDENTIFIER:
        raise ValueError("it is no adapter file of ONNX Runtime")
    adapter = _number(raw, "<I", 0)
    if (version := _number(raw, "<i", _field(raw, adapter, 0))) != _FORMAT_VERSION:
        raise ValueError(f"its format version is {version}; this runtime knows {_FORMAT_VERSION}")
    first, count = _vector(raw, _field(raw, adapter, 3), 4)
    tensors: dict[str, NDArray[np.generic]] = {}
    for at in range(first, first + 4 * count, 4):
        name, tensor = _parameter(raw, at + _number(raw, "<I", at))
        if name in tensors:
            raise ValueError(f"{name!r:.80} is in it twice")
        tensors[name] = tensor
    return tensors


def _parameter(raw: memoryview, table: int) -> tuple[str, NDArray[np.generic]]:
    at, size = _vector(raw, _field(raw, table, 0), 1)
    name = bytes(raw[at : at + size]).decode()
    at, dimensions = _vector(raw, _field(raw, table, 1), 8)
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"{name!r:.80} has {dimensions} dimensions")
    shape = tuple(_number(raw, "<q", at + 8 * index) for index in range(dimensions))
    code = _number(raw, "<i", _field(raw, table, 2))
    if code not in _TYPES:
        raise ValueError(f"{name!r:.80} is of a type that no adapter has ({code})")
    at, size = _vector(raw, _field(raw, table, 3), 1)
    dtype = np.dtype(_TYPES[code])
    if min(shape, default=1) < 1 or math.prod(shape) * dtype.itemsize != size or at % dtype.itemsize:
        raise ValueError(f"{name!r:.80} of shape {list(shape)} has {size} bytes at {at}")
    return name, np.ndarray(shape, dtype, raw, at)


def _field(raw: memoryview, table: int, index: int) -> int:
    """Where a field of a table lies; all that are asked for are always written."""
    vtable = table - _number(raw, "<i", table)
    entry = 4 + 2 * index
    offset = _number(raw, "<H", vtable + entry) if entry < _number(raw, "<H", vtable) else 0
    if not offset:
        raise ValueError("a field is missing from it")
    return table + offset


def _vector(raw: memoryview, at: int, width: int) -> tuple[int, int]:
    """Where the elements of the vector that is pointed to lie, and how many there are."""
    vector = at + _number(raw, "<I", at)
    count = _number(raw, "<I", vector)
    if vector + 4 + count * width > len(raw):
        raise ValueError("it is cut short")
    return vector + 4, count


def _number(raw: memoryview, form: str, at: int) -> int:
    if not 0 <= at <= len(raw) - struct.calcsize(form):
        raise ValueError("it is cut short, or leads out of itself")
    return int(struct.unpack_from(form, raw, at)[0])
