"""The file of weights beside an ONNX graph, written front to back; the graph only points into it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from runtime.errors import ExportError

PAGE = 4096
"""Alignment in bytes, so that a tensor can be mapped from the file without a copy."""


class ExternalData:
    """Appends tensors to a file and returns references to them. Use as a context manager.

    Raises:
        ExportError: the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise ExportError(f"cannot write {path}: {error}") from error

    def add(self, name: str, values: NDArray[np.generic]) -> ir.ExternalTensor:
        """Store a whole tensor.

        Raises:
            ExportError: the disk refuses.
        """
        tensor = self.begin(name, values.dtype, values.shape)
        self.append(values)
        return tensor

    def begin(self, name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> ir.ExternalTensor:
        """A reference to a tensor whose rows follow by `append`.

        Raises:
            ExportError: the disk refuses.
        """
        self._write(b"\0" * (-self.size % PAGE))
        return ir.ExternalTensor(
            self.path.name,
            self.size,
            math.prod(shape) * dtype.itemsize,
            ir.DataType.from_numpy(dtype),
            shape=ir.Shape(shape),
            name=name,
            base_dir=self.path.parent,
        )

    def append(self, rows: NDArray[np.generic]) -> None:
        """The next rows of the tensor that was begun.

        Raises:
            ExportError: the disk refuses.
        """
        self._write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)

    def _write(self, raw: bytes | memoryview) -> None:
        try:
            self._file.write(raw)
        except OSError as error:
            raise ExportError(f"cannot write {self.path}: {error}") from error
        self.size += len(raw)

    def __enter__(self) -> ExternalData:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._file:
                if kind is None:
                    self._file.flush()
                    os.fsync(self._file.fileno())
        except OSError as problem:
            if kind is None:
                raise ExportError(f"cannot write {self.path}: {problem}") from problem


def seen_as(tensor: ir.ExternalTensor, name: str, shape: tuple[int, ...]) -> ir.ExternalTensor:
    """The same bytes of the same file under another name and shape."""
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(shape),
        name=name,
        base_dir=tensor.base_dir,
    )
