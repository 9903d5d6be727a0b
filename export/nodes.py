"""A graph under construction: nodes in order, and the constants they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from runtime.errors import ExportError

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's contrib operators."""
OPSETS = {"": 21, MICROSOFT: 1}
IR_VERSION = 10

Attributes = Mapping[str, int | float | str]


class Nodes:
    """Collects nodes and initializers, and saves them as a model."""

    def __init__(self) -> None:
        self._nodes: list[ir.Node] = []
        self._constants: dict[str, ir.Value] = {}
        self._widened: dict[str, ir.Value] = {}

    def constant(self, tensor: ir.TensorProtocol) -> ir.Value:
        """A tensor as an initializer; asking again for the same name gives the same one."""
        name = str(tensor.name)
        if name not in self._constants:
            self._constants[name] = ir.val(name, const_value=tensor)
        return self._constants[name]

    def widened(self, tensor: ir.TensorProtocol) -> ir.Value:
        """A tensor of floats as float32; ONNX Runtime computes one of float16 when it opens the graph."""
        stored = self.constant(tensor)
        if tensor.dtype == ir.DataType.FLOAT:
            return stored
        name = f"{tensor.name}.float32"
        if name not in self._widened:
            self._widened[name] = self.add("Cast", (stored,), name, {"to": int(ir.DataType.FLOAT)})
        return self._widened[name]

    def inline(self, name: str, values: NDArray[np.generic]) -> ir.Value:
        """A small array as an initializer that lies in the graph's own file."""
        return self.constant(ir.tensor(values, name=name))

    def add(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        output: str,
        attributes: Attributes | None = None,
        domain: str = "",
    ) -> ir.Value:
        """A node with one output, which names the node too."""
        return self.add_many(kind, inputs, (output,), attributes, domain)[0]

    def add_many(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[str],
        attributes: Attributes | None = None,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """A node with several outputs; an optional one that nothing reads has the name ""."""
        values = [ir.val(name) for name in outputs]
        self._nodes.append(
            ir.node(kind, inputs, attributes, domain=domain, outputs=values, name=f"{outputs[0]}/{kind}")
        )
        return values

    def save(self, path: Path, name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> None:
        """Write the model; external tensors stay where they are.

        Raises:
            ExportError: the disk refuses.
        """
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self._nodes,
            initializers=tuple(self._constants.values()),
            opset_imports=OPSETS,
            name=name,
        )
        try:
            ir.save(ir.Model(graph, ir_version=IR_VERSION, producer_name="cockpit-edge"), path)
        except OSError as error:
            raise ExportError(f"cannot write {path}: {error}") from error
