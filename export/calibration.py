"""How loud the inputs of a model's widest products are, channel by channel, on real conversations.

A calibration folder holds `activations.safetensors`: of every layer N the tensor `layers.N.mlp.input`,
float32 [hidden], the largest magnitude of each channel that the gate and up projections read.
`pipeline.calibrate` writes it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.weights import read_header
from runtime.errors import CheckpointError, ExportError

ACTIVATIONS = "activations.safetensors"


class Calibration:
    """A calibration folder."""

    def __init__(self, folder: Path) -> None:
        """Read the file's header.

        Raises:
            ExportError: there is no such file, or it is damaged.
        """
        self._file = folder / ACTIVATIONS
        if not self._file.is_file():
            raise ExportError(f"{folder} has no {ACTIVATIONS}; make one with `cockpit calibrate`")
        try:
            self._tensors, _ = read_header(self._file)
        except CheckpointError as error:
            raise ExportError(str(error)) from error

    def mlp_input(self, layer: int, hidden: int) -> NDArray[np.float32]:
        """Of each channel [hidden] that gate and up of a layer read, the largest magnitude.

        Raises:
            ExportError: the calibration is of another model, or has numbers that are none.
        """
        name = f"layers.{layer}.mlp.input"
        tensor = self._tensors.get(name)
        if tensor is None or tensor.dtype != "F32" or tensor.shape != (hidden,):
            raise ExportError(
                f'{self._file} has no "{name}" of {hidden} channels in float32; '
                "calibrate this very checkpoint"
            )
        values = np.fromfile(tensor.file, np.float32, hidden, offset=tensor.offset)
        if not np.isfinite(values).all():
            raise ExportError(f"{self._file} has NaN or infinite activations; calibrate a sound checkpoint")
        return values
