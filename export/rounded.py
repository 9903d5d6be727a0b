"""Matrices that were rounded before the export, with a view to what they are multiplied by.

A rounding folder holds `rounded.safetensors`: of every matrix that is rounded, by the name under which the
graph stores it, `NAME.packed` uint8 and `NAME.scales` as `export.quantize.Blocks` has them, in float16 or
float32, and at 4 bits `NAME.zero_points` uint8; a matrix without zero points has 8 bits. `pipeline.rounding`
writes it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.quantize import Blocks
from export.weights import Tensor, read_header
from runtime.errors import CheckpointError, ExportError

ROUNDED = "rounded.safetensors"
FLOATS: dict[str, np.dtype[np.generic]] = {"F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}
"""What scales are stored as."""


class Rounded:
    """A rounding folder."""

    def __init__(self, folder: Path) -> None:
        """Read the file's header.

        Raises:
            ExportError: there is no such file, or it is damaged.
        """
        self._file = folder / ROUNDED
        if not self._file.is_file():
            raise ExportError(f"{folder} has no {ROUNDED}; make one with `cockpit round`")
        try:
            self._tensors, _ = read_header(self._file)
        except CheckpointError as error:
            raise ExportError(str(error)) from error

    def matrix(self, name: str, rows: int, columns: int) -> tuple[Blocks, int, int]:
        """A matrix [rows, columns], its bits and its block size.

        Raises:
            ExportError: it is of another model, or has scales that are none.
        """
        packed, scales = self._tensors.get(f"{name}.packed"), self._tensors.get(f"{name}.scales")
        zeros = self._tensors.get(f"{name}.zero_points")
        bits = 8 if zeros is None else 4
        if packed is not None and scales is not None and len(packed.shape) == 3:
            size = packed.shape[2] * 8 // bits
            count = -(-columns // size) if size else 0
            shapes = {
                packed: ("U8", (rows, count, size * bits // 8)),
                scales: (scales.dtype if scales.dtype in FLOATS else "", (rows, count)),
            }
            if zeros is not None:
                shapes[zeros] = ("U8", (rows, -(-count * bits // 8)))
            if size in (16, 32, 64, 128) and all(
                (tensor.dtype, tensor.shape) == expected for tensor, expected in shapes.items()
            ):
                return self._read(name, packed, scales, zeros), bits, size
        raise ExportError(
            f'{self._file} has no "{name}" of {rows} rows and {columns} columns; round this very checkpoint'
        )

    def _read(self, name: str, packed: Tensor, scales: Tensor, zeros: Tensor | None) -> Blocks:
        values: NDArray[np.float32] = _array(scales, FLOATS[scales.dtype]).astype(np.float32)
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ExportError(
                f'{self._file}: "{name}" has scales that are not positive numbers; round the checkpoint again'
            )
        integers = np.dtype(np.uint8)
        return Blocks(_array(packed, integers), values, None if zeros is None else _array(zeros, integers))


def _array(tensor: Tensor, dtype: np.dtype[np.generic]) -> NDArray:  # type: ignore[type-arg]
    count = tensor.nbytes // dtype.itemsize
    return np.fromfile(tensor.file, dtype, count, offset=tensor.offset).reshape(tensor.shape)
