"""A Llama-family checkpoint as an ONNX graph of ONNX Runtime's fused operators, written node by node.

`model.onnx`, with B the batch, S new tokens, P the length of the cache tensors given, T their mask's:

    input_ids                  int64 [B, S]
    attention_mask             int64 [B, T]    1 for each token so far, the S new ones included, then
                                               zeros to any length
    past_key_values.N.key      [B, kv_heads, P, head_dim], and .value; per layer N
    logits                     float32 [B, 1, vocabulary]    after the last position
    hidden_states              [B, S, hidden]                what the head reads, at every position
    present.N.key, .value      as the past, with the new tokens' rows set

Floats are float16 at precision fp16 and float32 otherwise; past and present may be int8
(`export.kv_cache`). They may be one buffer as long as the context, which is then updated in place; or the
past is as long as the tokens before, and the present longer by S. Several tokens behind a non-empty cache
need B = 1: GroupQueryAttention has no other form on CPU.

`head.onnx` maps hidden_states to the logits of every position with the same bytes of model.onnx.data:
whoever scores a text and whoever generates one use the same weights.

A switchable graph has the factors of LoRA adapters as further inputs, which may be left out
(`export.branches`); adapter_sites.json names them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.architecture import Architecture, read_architecture
from export.branches import Branches, Switchable
from export.calibration import Calibration
from export.external_data import ExternalData
from export.kv_cache import ATTRIBUTES, KvCache, scales
from export.matrix import (
    FLOAT_TYPES,
    BlockMatrix,
    Matrix,
    Table,
    float_rows,
    stacked,
    store_blocks,
    store_channels,
    store_matrix,
    store_rounded,
    store_table,
)
from export.nodes import MICROSOFT, Nodes
from export.rope import tables
from export.rounded import Rounded
from export.shapes import EMBEDDING, HEAD, check_shapes
from export.smoothing import evened_out, smoothing
from export.weights import Checkpoint
from runtime.errors import ExportError

Precision = Literal["fp32", "fp16", "int8", "int4"]
Progress = Callable[[str, int, int], None]
"""Called with what is being written, how many parts are done, and how many there are."""


def write_graph(
    checkpoint: Path,
    out: Path,
    precision: Precision,
    block_size: int,
    context: int,
    progress: Progress,
    calibration: Calibration | None = None,
    switchable: Switchable | None = None,
    rounded: Rounded | None = None,
    kv_cache: KvCache = "float",
) -> None:
    """Write model.onnx, head.onnx and the model.onnx.data of both into the directory `out`.

    Weights pass through one block of rows at a time, so peak memory is a few matrices.

    Args:
        checkpoint: a Hugging Face folder with safetensors.
        out: an existing directory.
        precision: fp16 is of weights and activations; int8 and int4 of weights, with float32 activations.
        block_size: most weights that share a scale (int8, int4).
        context: longest sequence in tokens.
        progress: hears of each layer.
        calibration: with it, int8 rounds what gate and up read as a whole, smoothed, in every layer
            where that leaves no outlier; caches in int8 need it, at any precision.
        switchable: with it, the graph takes adapters, and adapter_sites.json says where.
        rounded: with it, int8 and int4 take matrices from there, each with its own block size, and int4 with
            its own bits; int8 then rounds nothing as a whole.
        kv_cache: int8 keeps keys and values in a quarter of float32's memory, where activations are float32.

    Raises:
        CheckpointError: the checkpoint is damaged, or has not the tensors its config promises.
        ExportError: the checkpoint cannot be expressed, a cache in int8 has no calibration or float16
            beside it, or the disk refuses.
    """
    architecture = read_architecture(checkpoint)
    if not 0 < context <= architecture.max_positions:
        raise ExportError(
            f"a context of {context} tokens was asked for; the checkpoint's is {architecture.max_positions}"
        )
    if kv_cache == "int8" and precision == "fp16":
        raise ExportError('kv_cache = "int8" is for a CPU, and precision = "fp16" for a GPU: choose one')
    if kv_cache == "int8" and calibration is None:
        raise ExportError(
            'kv_cache = "int8" needs to know how loud keys and values are: give it what `cockpit calibrate` '
            "made of this checkpoint"
        )
    weights = Checkpoint(checkpoint)
    check_shapes(architecture, weights)
    with ExternalData(out / "model.onnx.data") as data:
        decoder = _Decoder(
            architecture,
            weights,
            data,
            precision,
            block_size,
            context,
            calibration if precision == "int8" and rounded is None else None,
            switchable,
            rounded if precision in ("int8", "int4") else None,
            calibration if kv_cache == "int8" else None,
        )
        decoder.write(out, progress)


class _Decoder:
    """The graph of one checkpoint at one precision."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Checkpoint,
        data: ExternalData,
        precision: Precision,
        block_size: int,
        context: int,
        calibration: Calibration | None,
        switchable: Switchable | None,
        rounded: Rounded | None,
        cached: Calibration | None,
    ) -> None:
        self.architecture = architecture
        self.weights = weights
        self.data = data
        self.precision = precision
        self.block_size = block_size
        self.context = context
        self.calibration = calibration
        self.rounded = rounded
        self.cached = cached
        self.dtype = FLOAT_TYPES["fp16" if precision == "fp16" else "fp32"]
        self.type = ir.DataType.from_numpy(self.dtype)
        self.cache_type = self.type if cached is None else ir.DataType.INT8
        self.nodes = Nodes()
        self.ids = ir.val("input_ids", ir.DataType.INT64, ["batch", "new"])
        self.branches: Branches | None = None
        if switchable is not None:
            self.branches = Branches(self.nodes, self.ids, switchable, self.dtype)

    def write(self, out: Path, progress: Progress) -> None:
        """Write both graphs and their data."""
        a, nodes, ids = self.architecture, self.nodes, self.ids
        mask = ir.val("attention_mask", ir.DataType.INT64, ["batch", "total"])
        lengths = self._lengths(mask)
        rotation = [
            nodes.constant(self.data.add(name, table.astype(self.dtype)))
            for name, table in zip(("cos", "sin"), tables(a.rope, self.context), strict=True)
        ]
        embedding = self._table(EMBEDDING)
        head = embedding if a.tied else self._table(HEAD)
        residual = embedding.look_up(nodes, ids, "embedding")
        if self.branches:
            residual = self.branches.rows(residual, a.hidden, "embedding.rows")
        x = nodes.add(
            "SimplifiedLayerNormalization",
            (residual, self._vector("model.layers.0.input_layernorm.weight")),
            "layers.0.attention.input",
            {"axis": -1, "epsilon": a.norm_epsilon, "stash_type": 1},
        )
        inputs: list[ir.Value] = [ids, mask]
        outputs: list[ir.Value] = []
        for layer in range(a.layers):
            progress("layer", layer, a.layers)
            past = [self._cache(f"past_key_values.{layer}", part, "past") for part in ("key", "value")]
            attended, present = self._attention(layer, x, past, lengths, rotation)
            expanded, residual = self._mlp(layer, residual, attended)
            last = layer == a.layers - 1
            norm = "model.norm" if last else f"model.layers.{layer + 1}.input_layernorm"
            rows = "hidden_states.rows" if self.branches else "hidden_states"
            x, residual = self._norm(
                residual, expanded, norm, rows if last else f"layers.{layer + 1}.attention.input"
            )
            inputs += past
            outputs += present
        hidden = self.branches.whole(x, "hidden_states") if self.branches else x
        hidden.type, hidden.shape = ir.TensorType(self.type), ir.Shape(["batch", "new", a.hidden])
        final = nodes.add(
            "Gather", (hidden, nodes.inline("last", np.array([-1]))), "last_hidden", {"axis": 1}
        )
        logits = self._logits(nodes, head, final, 1)
        if self.branches:
            inputs += self.branches.inputs
            self.branches.write(out)
        nodes.save(out / "model.onnx", "decoder", inputs, [logits, hidden, *outputs])
        self._write_head(out, head)
        progress("layer", a.layers, a.layers)

    def _write_head(self, out: Path, head: Table) -> None:
        nodes = Nodes()
        hidden = ir.val("hidden_states", self.type, ["batch", "new", self.architecture.hidden])
        nodes.save(out / "head.onnx", "head", [hidden], [self._logits(nodes, head, hidden, "new")])

    def _lengths(self, mask: ir.Value) -> list[ir.Value]:
        """GroupQueryAttention's seqlens_k [B], tokens so far minus 1, and total_sequence_length."""
        nodes = self.nodes
        totals = nodes.add(
            "ReduceSum", (mask, nodes.inline("axis_1", np.array([1]))), "lengths", {"keepdims": 0}
        )
        before = nodes.add("Sub", (totals, nodes.inline("one", np.array([1]))), "lengths_minus_1")
        longest = nodes.add("ReduceMax", (totals,), "longest", {"keepdims": 0})
        int32 = {"to": int(ir.DataType.INT32)}
        return [
            nodes.add("Cast", (before,), "seqlens_k", int32),
            nodes.add("Cast", (longest,), "total_sequence_length", int32),
        ]

    def _attention(
        self, layer: int, x: ir.Value, past: list[ir.Value], lengths: list[ir.Value], rotation: list[ir.Value]
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        a, nodes = self.architecture, self.nodes
        source, name = f"model.layers.{layer}.self_attn", f"layers.{layer}.attention"
        projections = [f"{source}.{part}_proj" for part in ("q", "k", "v")]
        rows = f"{name}.qkv.rows" if self.branches else f"{name}.qkv"
        qkv = self._project(f"{source}.qkv_proj", projections, x, rows, a.qkv_bias)
        if self.branches:
            qkv = self.branches.whole(qkv, f"{name}.qkv")
        heads: list[ir.Value | None] = [qkv, None, None]
        if a.qk_norm:
            heads = self._normalized_heads(source, name, qkv)
        attributes: dict[str, int | float | str] = {
            "num_heads": a.heads,
            "kv_num_heads": a.kv_heads,
            "do_rotary": 1,
            "rotary_interleaved": 0,
        }
        window = a.windows[layer]
        if window is not None and window < self.context:
            attributes["local_window_size"] = window
        rounding: list[ir.Value | None] = []
        if self.cached is not None:
            attributes |= ATTRIBUTES
            # Behind three optional inputs: positions, a bias of attention, a sink.
            rounding = [None, None, None, *self._cache_scales(self.cached, layer, name)]
        mixed, key, value = nodes.add_many(
            "GroupQueryAttention",
            (*heads, *past, *lengths, *rotation, *rounding),
            (f"{name}.mixed", f"present.{layer}.key", f"present.{layer}.value"),
            attributes,
            MICROSOFT,
        )
        for part in (key, value):
            part.type, part.shape = ir.TensorType(self.cache_type), self._cache_shape("present")
        if self.branches:
            mixed = self.branches.rows(mixed, a.heads * a.head_dim, f"{name}.mixed.rows")
        output = self._project(
            f"{source}.o_proj", [f"{source}.o_proj"], mixed, f"{name}.output", a.output_bias
        )
        return output, (key, value)

    def _cache_scales(self, cached: Calibration, layer: int, name: str) -> list[ir.Value]:
        """Of keys and of values."""
        of_each = scales(cached, layer, self.architecture.kv_heads, self.architecture.head_dim)
        return [
            self.nodes.inline(f"{name}.{part}.scales", values)
            for part, values in zip(("keys", "values"), of_each, strict=True)
        ]

    def _normalized_heads(self, source: str, name: str, qkv: ir.Value) -> list[ir.Value | None]:
        """Queries and keys normalized head by head, and the values: each [B, S, heads * head_dim]."""
        a, nodes = self.architecture, self.nodes
        widths = np.array([a.heads * a.head_dim, a.kv_heads * a.head_dim, a.kv_heads * a.head_dim])
        parts = nodes.add_many(
            "Split",
            (qkv, nodes.inline("qkv_widths", widths)),
            [f"{name}.{part}" for part in ("q", "k", "v")],
            {"axis": -1},
        )
        normalized: list[ir.Value | None] = []
        for part, values, count in zip(("q", "k"), parts[:2], (a.heads, a.kv_heads), strict=True):
            by_head = nodes.inline(f"{part}_heads", np.array([0, 0, count, a.head_dim]))
            flat = nodes.inline(f"{part}_flat", np.array([0, 0, count * a.head_dim]))
            split = nodes.add("Reshape", (values, by_head), f"{name}.{part}.heads")
            scaled = nodes.add(
                "SimplifiedLayerNormalization",
                (split, self._vector(f"{source}.{part}_norm.weight")),
                f"{name}.{part}.normalized",
                {"axis": -1, "epsilon": a.norm_epsilon, "stash_type": 1},
            )
            normalized.append(nodes.add("Reshape", (scaled, flat), f"{name}.{part}.flat"))
        return [*normalized, parts[2]]

    def _mlp(self, layer: int, residual: ir.Value, attended: ir.Value) -> tuple[ir.Value, ir.Value]:
        """What the layer's second half adds, and the residual stream that it adds to."""
        a, nodes = self.architecture, self.nodes
        source, name = f"model.layers.{layer}.mlp", f"layers.{layer}.mlp"
        norm = f"model.layers.{layer}.post_attention_layernorm"
        parts = [f"{source}.gate_proj", f"{source}.up_proj"]
        smoothed = self._smoothed(layer, parts)
        if smoothed is None:
            x, residual = self._norm(residual, attended, norm, f"{name}.input")
            both = self._project(f"{source}.gate_up_proj", parts, x, f"{name}.gate_up", a.mlp_bias)
        else:
            scales, weight = smoothed
            # Another name than the plain input's: it is not the same value.
            x, residual = self._norm(residual, attended, norm, f"{name}.input.smoothed", scales)
            matrix = store_channels(self.data, f"{source}.gate_up_proj.weight", weight)
            both = self._multiply(
                f"{source}.gate_up_proj", matrix, parts, x, f"{name}.gate_up", a.mlp_bias, scales
            )
        gate, up = nodes.add_many(
            "Split", (both,), (f"{name}.gate", f"{name}.up"), {"axis": -1, "num_outputs": 2}
        )
        opened = nodes.add("QuickGelu", (gate,), f"{name}.silu", {"alpha": 1.0}, MICROSOFT)
        product = nodes.add("Mul", (opened, up), f"{name}.product")
        output = self._project(
            f"{source}.down_proj", [f"{source}.down_proj"], product, f"{name}.output", a.mlp_bias
        )
        return output, residual

    def _smoothed(
        self, layer: int, parts: Sequence[str]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Scales [hidden] of what gate and up read, and their weights times these.

        None without a calibration, and where an outlier is too loud for all channels to share one scale.
        """
        if self.calibration is None:
            return None
        weight = stacked(self.weights, [f"{part}.weight" for part in parts])
        loudest = self.calibration.loudest(f"layers.{layer}.mlp.input", self.architecture.hidden)
        scales = smoothing(loudest, weight)
        return (scales, weight * scales) if evened_out(loudest, scales) else None

    def _norm(
        self,
        residual: ir.Value,
        update: ir.Value,
        source: str,
        name: str,
        divided_by: NDArray[np.float32] | None = None,
    ) -> tuple[ir.Value, ir.Value]:
        """The normalized sum, named `name`, and the sum itself: the residual stream from here on."""
        weight = self._read_vector(f"{source}.weight")
        if divided_by is not None:
            weight = weight.astype(np.float32) / divided_by
        outputs = self.nodes.add_many(
            "SkipSimplifiedLayerNormalization",
            (residual, update, self.nodes.inline(f"{source}.weight", weight)),
            (name, "", "", f"{source}.residual"),
            {"epsilon": self.architecture.norm_epsilon},
            MICROSOFT,
        )
        return outputs[0], outputs[3]

    def _logits(self, nodes: Nodes, head: Table, hidden: ir.Value, length: int | str) -> ir.Value:
        """The head's output in float32."""
        half = self.dtype == np.float16
        logits = head.multiply(nodes, hidden, "logits_half" if half else "logits", None)
        if half:
            logits = nodes.add("Cast", (logits,), "logits", {"to": int(ir.DataType.FLOAT)})
        logits.type = ir.TensorType(ir.DataType.FLOAT)
        logits.shape = ir.Shape(["batch", length, self.architecture.vocabulary])
        return logits

    def _project(self, name: str, sources: list[str], x: ir.Value, output: str, with_bias: bool) -> ir.Value:
        """Multiply by the stacked weights of the checkpoint's modules `sources`."""
        matrices = [f"{source}.weight" for source in sources]
        matrix: Matrix
        if self.rounded is not None:
            matrix = self._rounded(self.rounded, f"{name}.weight", matrices)
        elif self.precision in ("int8", "int4"):
            bits = 8 if self.precision == "int8" else 4
            matrix = store_blocks(self.data, self.weights, f"{name}.weight", matrices, bits, self.block_size)
        else:
            matrix = store_matrix(self.data, self.weights, f"{name}.weight", matrices, self.dtype)
        return self._multiply(name, matrix, sources, x, output, with_bias)

    def _rounded(self, rounded: Rounded, name: str, sources: Sequence[str]) -> BlockMatrix:
        """The stacked weights `sources` as they were rounded before.

        Raises:
            ExportError: they were rounded for int4, and this is int8.
        """
        shapes = [self.weights.shape(source) for source in sources]
        rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
        blocks, bits, block_size = rounded.matrix(name, rows, columns)
        if self.precision == "int8" and bits != 8:
            raise ExportError(
                f'"{name}" was rounded to {bits} bits, and the export is to be int8: '
                "round for int8, or export int4"
            )
        return store_rounded(self.data, name, columns, (blocks, bits, block_size))

    def _multiply(
        self,
        name: str,
        matrix: Matrix,
        sources: Sequence[str],
        x: ir.Value,
        output: str,
        with_bias: bool,
        divided_by: NDArray[np.float32] | None = None,
    ) -> ir.Value:
        """Multiply by a stored matrix, and add what an adapter may.

        An adapter is made for the plain x, which is given here `divided_by` scales.
        """
        bias = self._biases(sources) if with_bias else None
        if self.branches is None:
            return matrix.multiply(self.nodes, x, output, bias)
        product = matrix.multiply(self.nodes, x, f"{output}.base", bias)
        if divided_by is not None:
            scales = self.nodes.inline(f"{name}.smoothing", divided_by)
            x = self.nodes.add("Mul", (x, scales), f"{output}.plain_input")
        named = name.replace(".self_attn.", ".attn.")  # as onnxruntime-genai's model builder has it
        shapes = {f"{source}.weight": self.weights.shape(f"{source}.weight") for source in sources}
        rows = {tensor: shape[0] for tensor, shape in shapes.items()}
        columns = shapes[f"{sources[0]}.weight"][1]
        return self.branches.beside(named, rows, columns, x, product, output)

    def _biases(self, sources: Sequence[str]) -> NDArray[np.generic]:
        return np.concatenate([self._read_vector(f"{source}.bias") for source in sources])

    def _table(self, name: str) -> Table:
        if self.rounded is not None:
            return self._rounded(self.rounded, name, [name])
        if self.precision in ("int8", "int4"):
            return store_blocks(self.data, self.weights, name, [name], 8, self.block_size)
        return store_table(self.data, self.weights, name, name, self.dtype)

    def _vector(self, name: str) -> ir.Value:
        return self.nodes.inline(name, self._read_vector(name))

    def _read_vector(self, name: str) -> NDArray[np.generic]:
        return next(float_rows(self.weights, name, self.dtype))

    def _cache(self, name: str, part: str, length: str) -> ir.Value:
        return ir.val(f"{name}.{part}", self.cache_type, self._cache_shape(length))

    def _cache_shape(self, length: str) -> ir.Shape:
        return ir.Shape(["batch", self.architecture.kv_heads, length, self.architecture.head_dim])
