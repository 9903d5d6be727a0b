"""LoRA branches beside a decoder's products, with factors that are inputs of the graph.

The update s · B A of a weight (arXiv 2106.09685) is added behind the product that the weight is part of:
two Gemm nodes, of which the second reads the product as its C. Weights that share a product share the
branch. The factors are initializers that are inputs too: a caller that gives none gets the empty ones, of
rank 0, and the product itself to the last bit.

Gemm takes matrices, so that a switchable decoder holds its activations as rows [B·S, width] wherever no
operator asks for [B, S, width].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from export.nodes import Nodes
from runtime.errors import ExportError
from runtime.sites import SITES, Part, Site, Sites


@dataclass(frozen=True)
class Switchable:
    """What a switchable graph is told.

    Attributes:
        most_rank: largest rank of one weight's update.
        digests: name → digest of every weight of the checkpoint, for adapters to be compared with.
    """

    most_rank: int
    digests: Mapping[str, str]


class Branches:
    """The branches of one graph, and its rows."""

    def __init__(
        self, nodes: Nodes, ids: ir.Value, switchable: Switchable, dtype: np.dtype[np.generic]
    ) -> None:
        if switchable.most_rank < 1:
            raise ExportError(f"the largest rank of an adapter must be 1 or more, not {switchable.most_rank}")
        self.inputs: list[ir.Value] = []
        self._nodes = nodes
        self._switchable = switchable
        self._dtype = dtype
        self._sites: list[Site] = []
        lengths = nodes.add("Shape", (ids,), "batch_and_length")
        rest = nodes.inline("rest", np.array([-1]))
        self._whole = nodes.add("Concat", (lengths, rest), "batch_length_and_width", {"axis": 0})

    def rows(self, x: ir.Value, width: int, output: str) -> ir.Value:
        """x [B, S, width] → [B·S, width]; no value moves."""
        shape = self._nodes.inline(f"rows_of_{width}", np.array([-1, width]))
        return self._nodes.add("Reshape", (x, shape), output)

    def whole(self, x: ir.Value, output: str) -> ir.Value:
        """x [B·S, width] → [B, S, width]; no value moves."""
        return self._nodes.add("Reshape", (x, self._whole), output)

    def beside(
        self, name: str, tensors: Mapping[str, int], columns: int, x: ir.Value, product: ir.Value, output: str
    ) -> ir.Value:
        """The product and what an adapter adds to it, [B·S, rows].

        Args:
            name: of the product, as onnxruntime-genai's model builder would name it.
            tensors: name → rows of the checkpoint's weights that the product stacks, in order.
            columns: width of x.
            x: what the product reads, [B·S, columns].
            product: [B·S, rows].
            output: name of the sum.

        Raises:
            ExportError: a weight has no digest.
        """
        digests = self._switchable.digests
        if unknown := [tensor for tensor in tensors if tensor not in digests]:
            raise ExportError(f"there is no digest of {', '.join(unknown)}: fingerprint the checkpoint again")
        parts = tuple(Part(tensor, rows, digests[tensor]) for tensor, rows in tensors.items())
        site = Site(f"{name}.lora_A.MatMul.weight", f"{name}.lora_B.MatMul.weight", columns, parts)
        self._sites.append(site)
        a = self._factor(site.a, (columns, 0), [columns, f"{name}.rank"])
        b = self._factor(site.b, (0, site.rows), [f"{name}.rank", site.rows])
        narrow = self._nodes.add("Gemm", (x, a), f"{output}.narrow")
        return self._nodes.add("Gemm", (narrow, b, product), output)

    def write(self, out: Path) -> None:
        """Write adapter_sites.json into the directory `out`.

        Raises:
            ExportError: the disk refuses.
        """
        dtype: Literal["float32", "float16"] = "float16" if self._dtype == np.float16 else "float32"
        sites = Sites(1, self._switchable.most_rank, dtype, tuple(self._sites))
        try:
            (out / SITES).write_text(json.dumps(asdict(sites), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ExportError(f"cannot write {out / SITES}: {error}") from error

    def _factor(self, name: str, empty: tuple[int, int], shape: Sequence[int | str]) -> ir.Value:
        value = self._nodes.inline(name, np.zeros(empty, self._dtype))
        value.type = ir.TensorType(ir.DataType.from_numpy(self._dtype))
        value.shape = ir.Shape(shape)
        self.inputs.append(value)
        return value
