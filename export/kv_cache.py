"""Keys and values in int8: what GroupQueryAttention reads to round them as they enter the cache.

A scale of its own for every channel of every head, fixed when the graph is written: value = integer · scale
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from export.calibration import Calibration
from export.nodes import Attributes
from runtime.errors import ExportError

KvCache = Literal["float", "int8"]
ATTRIBUTES: Attributes = {
    "k_quant_type": "PER_CHANNEL",
    "v_quant_type": "PER_CHANNEL",
    "kv_cache_bit_width": 8,
}
_LARGEST = 127


def scales(calibration: Calibration, layer: int, heads: int, head_dim: int) -> list[NDArray[np.float32]]:
    """Scales of a layer's keys and of its values, each [1, heads, 1, head_dim].

    Raises:
        ExportError: the calibration is of another model or has none, or a channel of it was never but zero.
    """
    found = []
    for part in ("keys", "values"):
        each = calibration.loudest(f"layers.{layer}.{part}", heads * head_dim) / np.float32(_LARGEST)
        if not (each > 0).all():
            raise ExportError(
                f"of the {part} of layer {layer}, {int((each <= 0).sum())} channels were zero throughout the "
                'calibration, which says nothing of their scale; export with kv_cache = "float"'
            )
        found.append(each.reshape(1, heads, 1, head_dim))
    return found
