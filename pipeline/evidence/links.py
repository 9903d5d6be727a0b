"""The forms between the unmerged model and the bundle, each ready to be opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from export.architecture import read_architecture
from export.graph import write_graph
from export.weights import Checkpoint
from pipeline.config import Validate
from pipeline.evidence.chain import Link
from pipeline.evidence.form import Conversation, Form, Logits, Output
from pipeline.evidence.onnx_model import OnnxModel, float_activations, write_variant
from pipeline.evidence.torch_model import TorchModel
from runtime import Assistant
from runtime.errors import ExportError
from runtime.manifest import Precision

_WEIGHTS: Mapping[Precision, str] = {"fp32": "float32", "fp16": "float16", "int8": "int8", "int4": "int4"}


class _Bundle:
    """The bundle through the runtime, as a form."""

    def __init__(self, assistant: Assistant) -> None:
        self._decoder = assistant.decoder

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        return self._decoder.vocabulary

    def logits(self, conversations: Sequence[Conversation]) -> list[Logits]:
        """Logits (positions, V) at the counted positions of each conversation."""
        return [one.counted(self._decoder.score(one.tokens)) for one in conversations]

    def outputs(self, tokens: Sequence[int]) -> list[Output]:
        """None: the runtime shows logits alone."""
        return []


def chain_links(
    settings: Validate, assistant: Assistant, bundle: Path, merged: Path, scratch: Path
) -> list[Link]:
    """The links of the chain behind the unmerged model.

    Args:
        settings: threads.
        assistant: the bundle, loaded.
        bundle: its directory.
        merged: the checkpoint it was exported from.
        scratch: where graphs that do not ship are written; `weights_only` stays there.
    """
    precision, threads = assistant.manifest.precision, settings.threads
    shipped = _WEIGHTS[precision]

    def open_merged() -> Form:
        return TorchModel(merged, None, threads, "float32")

    def open_onnx() -> Form:
        folder = scratch / "onnx"
        folder.mkdir()
        context = min(assistant.manifest.limits.context, read_architecture(merged).max_positions)
        write_graph(merged, folder, "fp32", 32, context, lambda message, done, total: None)
        return OnnxModel(folder, scratch / "onnx_shown", threads, alone=False)

    def open_weights_only() -> Form:
        write_variant(bundle, scratch / "weights_only", float_activations)
        folder = scratch / "weights_only"
        return OnnxModel(folder, scratch / "weights_only_shown", threads, alone=False)

    def open_shipped() -> Form:
        return OnnxModel(bundle, scratch / "shipped_shown", threads, alone=True)

    links = [Link("merged", _merged_weights(merged), open_merged)]
    if _has_graph(merged):
        links.append(Link("onnx", "float32", open_onnx))
    if precision in ("int8", "int4"):
        links.append(Link("weights_only", shipped, open_weights_only))
    links.append(Link("shipped", shipped, open_shipped))
    links.append(Link("bundle", shipped, lambda: _Bundle(assistant)))
    return links


def _has_graph(merged: Path) -> bool:
    """Whether our own graph expresses the checkpoint; what only the other exporter does has no such form."""
    try:
        read_architecture(merged)
    except ExportError:
        return False
    return True


def _merged_weights(merged: Path) -> str:
    """Number format of the checkpoint's largest tensor."""
    checkpoint = Checkpoint(merged)
    largest = max(checkpoint.names, key=lambda name: int(np.prod(checkpoint.shape(name))))
    return checkpoint.dtype(largest).name
