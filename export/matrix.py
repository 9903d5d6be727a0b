"""Weight matrices: stored in the data file by precision, then looked up or multiplied by in a graph.

A matrix [N, K] maps K inputs to N outputs, as in a checkpoint. Matrices that read the same input are
stored as one, stacked along N.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.external_data import ExternalData, seen_as
from export.nodes import MICROSOFT, Nodes
from export.quantize import Blocks, compact, quantize_blocks, quantize_channels
from export.weights import Checkpoint
from runtime.errors import ExportError

Float = Literal["fp32", "fp16"]
FLOAT_TYPES: dict[Float, np.dtype[np.generic]] = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}
CHUNK = 1 << 19
"""Values converted at a time: a few stay in the processor's cache, and none is a copy of the model."""


@dataclass(frozen=True)
class FloatMatrix:
    """A matrix of floats, transposed to [K, N] for MatMul."""

    weight: ir.ExternalTensor

    def multiply(self, nodes: Nodes, x: ir.Value, output: str, bias: NDArray[np.generic] | None) -> ir.Value:
        """x [..., K] → [..., N]."""
        weight = nodes.constant(self.weight)
        if bias is None:
            return nodes.add("MatMul", (x, weight), output)
        product = nodes.add("MatMul", (x, weight), f"{output}.product")
        return nodes.add("Add", (product, nodes.inline(f"{output}.bias", bias)), output)


@dataclass(frozen=True)
class FloatTable:
    """A matrix of floats as in the checkpoint, [N, K]: an embedding, a head, or both."""

    rows: int
    columns: int
    weight: ir.ExternalTensor

    def look_up(self, nodes: Nodes, ids: ir.Value, output: str) -> ir.Value:
        """ids [batch, S] → rows [batch, S, K]."""
        return nodes.add("Gather", (nodes.constant(self.weight), ids), output)

    def multiply(self, nodes: Nodes, x: ir.Value, output: str, bias: NDArray[np.generic] | None) -> ir.Value:
        """x [batch, S, K] → [batch, S, N], by Gemm, which reads the rows as they lie."""
        flat = nodes.add(
            "Reshape", (x, nodes.inline("flat_shape", np.array([-1, self.columns]))), f"{output}.flat"
        )
        product = nodes.add("Gemm", (flat, nodes.constant(self.weight)), f"{output}.product", {"transB": 1})
        shape = nodes.add("Shape", (x,), f"{output}.batch_and_length", {"start": 0, "end": 2})
        width = nodes.inline("vocabulary", np.array([self.rows]))
        full = nodes.add("Concat", (shape, width), f"{output}.shape", {"axis": 0})
        return nodes.add("Reshape", (product, full), output)


@dataclass(frozen=True)
class BlockMatrix:
    """A matrix rounded block by block; `export.quantize` has the layout."""

    rows: int
    columns: int
    bits: int
    block_size: int
    packed: ir.ExternalTensor
    scales: ir.ExternalTensor
    zero_points: ir.ExternalTensor | None

    def look_up(self, nodes: Nodes, ids: ir.Value, output: str) -> ir.Value:
        """ids [batch, S] → rows [batch, S, K]."""
        count = -(-self.columns // self.block_size)
        row = count * self.block_size * self.bits // 8
        table = seen_as(self.packed, f"{self.packed.name}.rows", (self.rows, row))
        inputs = [nodes.constant(table), ids, nodes.widened(self.scales)]
        if self.zero_points is not None:
            inputs.append(nodes.constant(self.zero_points))
        attributes = {"bits": self.bits, "block_size": self.block_size, "gather_axis": 0, "quantize_axis": 1}
        if count * self.block_size == self.columns:
            return nodes.add("GatherBlockQuantized", inputs, output, attributes, MICROSOFT)
        padded = nodes.add("GatherBlockQuantized", inputs, f"{output}.padded", attributes, MICROSOFT)
        bounds = [
            nodes.inline(f"{output}.{name}", np.array([value]))
            for name, value in (("start", 0), ("end", self.columns), ("axis", 2))
        ]
        return nodes.add("Slice", (padded, *bounds), output)

    def multiply(self, nodes: Nodes, x: ir.Value, output: str, bias: NDArray[np.generic] | None) -> ir.Value:
        """x [..., K] → [..., N], with x rounded to int8 block by block (accuracy level 4)."""
        zero_points = None if self.zero_points is None else nodes.constant(self.zero_points)
        inputs = [x, nodes.constant(self.packed), nodes.widened(self.scales), zero_points]
        if bias is not None:
            inputs += [None, nodes.inline(f"{output}.bias", bias)]
        attributes = {
            "N": self.rows,
            "K": self.columns,
            "bits": self.bits,
            "block_size": self.block_size,
            "accuracy_level": 4,
        }
        return nodes.add("MatMulNBits", inputs, output, attributes, MICROSOFT)


@dataclass(frozen=True)
class ChannelMatrix:
    """A matrix rounded to int8 row by row, transposed to [K, N] for DynamicQuantizeMatMul."""

    weight: ir.ExternalTensor
    scales: ir.ExternalTensor

    def multiply(self, nodes: Nodes, x: ir.Value, output: str, bias: NDArray[np.generic] | None) -> ir.Value:
        """x [..., K] → [..., N], with x rounded to uint8 as a whole."""
        inputs: list[ir.Value | None] = [x, nodes.constant(self.weight), nodes.constant(self.scales)]
        if bias is not None:
            inputs += [None, nodes.inline(f"{output}.bias", bias)]
        return nodes.add("DynamicQuantizeMatMul", inputs, output, None, MICROSOFT)


Matrix = FloatMatrix | BlockMatrix | ChannelMatrix
Table = FloatTable | BlockMatrix


def store_matrix(
    data: ExternalData, checkpoint: Checkpoint, name: str, sources: Sequence[str], dtype: np.dtype[np.generic]
) -> FloatMatrix:
    """Stack the checkpoint's matrices `sources` into one, transposed.

    Raises:
        CheckpointError: a tensor cannot be read.
        ExportError: a value does not fit the precision, or the disk refuses.
    """
    columns = checkpoint.shape(sources[0])[1]
    rows = sum(checkpoint.shape(source)[0] for source in sources)
    transposed = np.empty((columns, rows), dtype)
    at = 0
    for source in sources:
        for chunk in float_rows(checkpoint, source, dtype):
            transposed[:, at : at + len(chunk)] = chunk.T
            at += len(chunk)
    return FloatMatrix(data.add(name, transposed))


def store_table(
    data: ExternalData, checkpoint: Checkpoint, name: str, source: str, dtype: np.dtype[np.generic]
) -> FloatTable:
    """Store one of the checkpoint's matrices as it is.

    Raises:
        CheckpointError: the tensor cannot be read.
        ExportError: a value does not fit the precision, or the disk refuses.
    """
    rows, columns = checkpoint.shape(source)
    tensor = data.begin(name, dtype, (rows, columns))
    for chunk in float_rows(checkpoint, source, dtype):
        data.append(chunk)
    return FloatTable(rows, columns, tensor)


def whole_block(columns: int, block_size: int) -> int:
    """The largest block of at most `block_size` weights that divides a row, or 16 where none does.

    A row that is filled up to whole blocks is multiplied at its full length.
    """
    sizes = (size for size in (128, 64, 32, 16) if size <= block_size and columns % size == 0)
    return next(sizes, 16)


def store_blocks(
    data: ExternalData,
    checkpoint: Checkpoint,
    name: str,
    sources: Sequence[str],
    bits: int,
    block_size: int,
) -> BlockMatrix:
    """Stack the checkpoint's matrices `sources` into one and round it: symmetric at 8 bits, not at 4.

    Blocks are as `whole_block` says.

    Raises:
        CheckpointError: a tensor cannot be read.
        ExportError: a block has no finite scale, or the disk refuses.
    """
    columns = checkpoint.shape(sources[0])[1]
    rows = sum(checkpoint.shape(source)[0] for source in sources)
    block_size = whole_block(columns, block_size)
    count = -(-columns // block_size)
    packed = data.begin(name, np.dtype(np.uint8), (rows, count, block_size * bits // 8))
    scales, zero_points = [], []
    for source in sources:
        for chunk in float_rows(checkpoint, source, FLOAT_TYPES["fp32"]):
            blocks = quantize_blocks(chunk.astype(np.float32, copy=False), bits, block_size, bits == 8)
            data.append(blocks.packed)
            scales.append(blocks.scales)
            if blocks.zero_points is not None:
                zero_points.append(blocks.zero_points)
    return BlockMatrix(
        rows,
        columns,
        bits,
        block_size,
        packed,
        data.add(f"{name}.scales", compact(np.concatenate(scales))),
        data.add(f"{name}.zero_points", np.concatenate(zero_points)) if zero_points else None,
    )


def store_rounded(
    data: ExternalData, name: str, columns: int, rounded: tuple[Blocks, int, int]
) -> BlockMatrix:
    """Store a matrix [N, columns] that is rounded already: blocks, bits, block size.

    Raises:
        ExportError: the disk refuses.
    """
    blocks, bits, block_size = rounded
    packed = data.add(name, blocks.packed)
    scales = data.add(f"{name}.scales", compact(blocks.scales))
    zeros = blocks.zero_points
    stored = None if zeros is None else data.add(f"{name}.zero_points", zeros)
    return BlockMatrix(len(blocks.scales), columns, bits, block_size, packed, scales, stored)


def store_channels(data: ExternalData, name: str, weight: NDArray[np.float32]) -> ChannelMatrix:
    """Round a matrix [N, K] row by row and store it transposed.

    Raises:
        ExportError: a row has no finite scale, or the disk refuses.
    """
    quantized, scales = quantize_channels(weight)
    return ChannelMatrix(data.add(name, quantized.T), data.add(f"{name}.scales", scales))


def stacked(checkpoint: Checkpoint, sources: Sequence[str]) -> NDArray[np.float32]:
    """Matrices of the checkpoint that read the same input, [N, K], one under the other.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    return np.concatenate([checkpoint.read_float32(source) for source in sources])


def float_rows(
    checkpoint: Checkpoint, source: str, dtype: np.dtype[np.generic]
) -> Iterator[NDArray[np.generic]]:
    """The rows of a tensor as `dtype`, a chunk at a time.

    Raises:
        CheckpointError: the tensor cannot be read.
        ExportError: a value does not fit `dtype`.
    """
    shape = checkpoint.shape(source)
    step = max(1, CHUNK // max(1, shape[-1])) if len(shape) > 1 else shape[0]
    limit = float(np.finfo(np.float16).max)
    for start in range(0, shape[0], step):
        values = checkpoint.read_float32(source, start, start + step)
        if dtype.itemsize < 4 and np.abs(values).max(initial=0) > limit:
            raise ExportError(
                f'"{source}" has values beyond {limit:g}, the largest of fp16: use fp32 or int8'
            )
        yield values.astype(dtype, copy=False)
