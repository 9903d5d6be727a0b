"""How loud activations of a model are, channel by channel, on real conversations.

A calibration folder holds `activations.safetensors`: the largest magnitude of each channel, in float32, of
every layer N in

    layers.N.mlp.input    [hidden]                 what the gate and up projections read
    layers.N.keys         [kv_heads * head_dim]    keys behind their rotation, as a cache holds them
    layers.N.values       [kv_heads * head_dim]

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

    def loudest(self, name: str, channels: int) -> NDArray[np.float32]:
        """The largest magnitude of each channel [channels] of a tensor named above.

        Raises:
            ExportError: the calibration is of another model, or has numbers that are none.
        """
        tensor = self._tensors.get(name)
        if tensor is None or tensor.dtype != "F32" or tensor.shape != (channels,):
            raise ExportError(
                f'{self._file} has no "{name}" of {channels} channels in float32; '
                "calibrate this very checkpoint anew with `cockpit calibrate`"
            )
        values = np.fromfile(tensor.file, np.float32, channels, offset=tensor.offset)
        if not np.isfinite(values).all():
            raise ExportError(f"{self._file} has NaN or infinite activations; calibrate a sound checkpoint")
        return values
