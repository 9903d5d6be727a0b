"""An exported model, run by ONNX Runtime without anything of the runtime's loop: one prefill, no cache."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from export.kv_cache import ATTRIBUTES
from pipeline.evidence.form import Conversation, Logits, Output, padded
from runtime.conversation import refuse_not_finite
from runtime.errors import InferenceError
from runtime.session import first_line, open_session

GRAPHS = ("model.onnx", "head.onnx")
_DATA = "model.onnx[._]data*"
_PAST = "past_key_values."
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
_SITE = re.compile(
    r"layers\.(?P<layer>\d+)\.(?P<site>attention\.(?:input|qkv|mixed|output)|mlp\.(?:input|gate_up|product|output))"
    r"|embedding|hidden_states"
)


class OnnxModel:
    """model.onnx, and head.onnx where there is one."""

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        threads: int,
        *,
        alone: bool,
        factors: Mapping[str, NDArray[np.generic]] | None = None,
    ) -> None:
        """Open the graphs in `folder`.

        Args:
            folder: model.onnx, its data, and head.onnx where there is one.
            scratch: a directory to make, for a graph that shows its insides.
            threads: of one operator.
            alone: whether conversations are run one by one.
            factors: of an adapter, by the input of a switchable graph that each is for.

        Raises:
            BundleError: ONNX Runtime refuses a graph.
        """
        self._folder, self._scratch, self._threads = folder, scratch, threads
        self._alone = alone
        self._factors = dict(factors or {})
        self._decoder = self._open(folder / "model.onnx")
        head = folder / "head.onnx"
        self._head = self._open(head) if head.exists() else None
        last = self._head or self._decoder
        self._vocabulary = next(int(v.shape[-1]) for v in last.get_outputs() if v.name == "logits")

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        return self._vocabulary

    def logits(self, conversations: Sequence[Conversation]) -> list[Logits]:
        """Logits (positions, V) at the counted positions of each conversation.

        With float activations side by side; with rounded ones each alone, as a car runs them, since what is
        run together may be rounded together.

        Raises:
            InferenceError: a number is not finite, or ONNX Runtime stops.
        """
        if self._alone:
            return [logits for one in conversations for logits in self._logits([one])]
        return self._logits(conversations)

    def _logits(self, conversations: Sequence[Conversation]) -> list[Logits]:
        name = "hidden_states" if self._head else "logits"
        (found,) = self._run(self._decoder, [name], *padded(conversations))
        result = []
        for row, conversation in enumerate(conversations):
            counted = conversation.counted(found[row])
            if self._head:
                counted = self._head.run(None, {"hidden_states": counted[None]})[0][0]
            refuse_not_finite(counted)
            result.append(np.asarray(counted, np.float32))
        return result

    def outputs(self, tokens: Sequence[int]) -> list[Output]:
        """What the graph's named values are over some tokens; none, where nothing has our graph's names."""
        graph = onnx.load(self._folder / "model.onnx", load_external_data=False).graph
        nodes = {name: node for node in graph.node for name in node.output}
        makers = {name: _maker(nodes, name) for name in nodes if _SITE.fullmatch(name)}
        if not makers:
            return []
        # Values to keep change how a graph is run, so this one is not the graph that is measured.
        write_variant(self._folder, self._scratch, lambda model: _show(model.graph, list(makers)))
        session = self._open(self._scratch / "model.onnx")
        ids = np.asarray([tokens], np.int64)
        values = self._run(session, list(makers), ids, np.ones_like(ids))
        del session
        shutil.rmtree(self._scratch)
        found = []
        for (name, operator), value in zip(makers.items(), values, strict=True):
            match = _SITE.fullmatch(name)
            layer = None if match is None or match["layer"] is None else int(match["layer"])
            site = name if layer is None or match is None else match["site"]
            # A switchable graph holds rows (S, width) where another has (1, S, width).
            rows = value.reshape(-1, value.shape[-1]).astype(np.float32, copy=False)
            found.append(Output(layer, site, operator, rows))
        return found

    def _open(self, path: Path) -> onnxruntime.InferenceSession:
        return open_session(path, self._threads, "cpu", spin=True)

    def _run(
        self,
        session: onnxruntime.InferenceSession,
        names: list[str],
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
    ) -> list[np.ndarray]:
        batch, width = ids.shape
        feeds: dict[str, np.ndarray] = {"input_ids": ids, "attention_mask": mask}
        feeds |= self._factors
        for value in session.get_inputs():
            if value.name.startswith(_PAST):
                feeds[value.name] = np.zeros((batch, value.shape[1], 0, value.shape[3]), _TYPES[value.type])
            elif value.name == "position_ids":
                feeds[value.name] = np.tile(np.arange(width, dtype=np.int64), (batch, 1))
        try:
            return list(session.run(names, feeds))
        except Exception as error:
            raise InferenceError(f"ONNX Runtime stopped: {first_line(error)}") from error


def write_variant(source: Path, out: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Copy the graphs of `source` into a new directory `out`, changed; weights are linked."""
    out.mkdir()
    for name in GRAPHS:
        if (source / name).exists():
            model = onnx.load(source / name, load_external_data=False)
            change(model)
            onnx.save(model, out / name)
    for data in source.glob(_DATA):
        try:
            os.link(data.resolve(), out / data.name)
        except OSError:
            shutil.copyfile(data, out / data.name)


def float_activations(model: onnx.ModelProto) -> None:
    """Have rounded weights multiplied by activations as they are, and keys and values kept as they are.

    MatMulNBits does so at accuracy level 0; DynamicQuantizeMatMul is a MatMul by the dequantized weights;
    GroupQueryAttention keeps what it is given, where it is given no scales.
    """
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "DynamicQuantizeMatMul":
            nodes += _dequantized(node)
            continue
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 0
        if node.op_type == "GroupQueryAttention":
            _keep_floats(node)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for cache in (*model.graph.input, *model.graph.output):
        if cache.type.tensor_type.elem_type == onnx.TensorProto.INT8:
            cache.type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def _keep_floats(node: onnx.NodeProto) -> None:
    """Take a GroupQueryAttention its scales of keys and values, inputs 12 and 13."""
    del node.input[12:]
    kept = [attribute for attribute in node.attribute if attribute.name not in ATTRIBUTES]
    del node.attribute[:]
    node.attribute.extend(kept)


def _dequantized(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """x, int8 [K, N], scales [N], no zero points, perhaps a bias → a product of floats of the same name."""
    x, weight, scales, *rest = node.input
    bias, output = rest[1] if len(rest) > 1 else "", node.output[0]
    product = f"{output}.product" if bias else output
    # Not DequantizeLinear: ONNX Runtime would make a MatMulNBits of it, which rounds activations again.
    made = [
        onnx.helper.make_node("Cast", [weight], [f"{output}.integers"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Mul", [f"{output}.integers", scales], [f"{output}.weight"]),
        onnx.helper.make_node("MatMul", [x, f"{output}.weight"], [product], name=node.name),
    ]
    if bias:
        made.append(onnx.helper.make_node("Add", [product, bias], [output]))
    return made


def _maker(nodes: Mapping[str, onnx.NodeProto], name: str) -> str:
    """The operator that computes a value, whatever reshapes it afterwards."""
    node = nodes[name]
    while node.op_type == "Reshape" and node.input[0] in nodes:
        node = nodes[node.input[0]]
    return str(node.op_type)


def _show(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Make values outputs of a graph."""
    present = {value.name for value in graph.output}
    graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in present
    )
