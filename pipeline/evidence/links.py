"""The forms between the unmerged model and the bundle, each ready to be opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from export.architecture import read_architecture
from export.branches import Switchable
from export.graph import write_graph
from export.weights import Checkpoint
from pipeline.config import Validate
from pipeline.evidence.chain import Link
from pipeline.evidence.form import Conversation, Form, Logits, Output
from pipeline.evidence.onnx_model import OnnxModel, float_activations, write_variant
from pipeline.evidence.torch_model import TorchModel
from pipeline.fingerprint import fingerprint
from pipeline.unmerged import keep_unmerged
from runtime import Assistant
from runtime.adapters import Adapter, load_adapter
from runtime.decoder import Decoder
from runtime.errors import ExportError
from runtime.manifest import Precision
from runtime.sites import ADAPTER_SUFFIX, read_adapter_record, read_sites, record_name

_WEIGHTS: Mapping[Precision, str] = {"fp32": "float32", "fp16": "float16", "int8": "int8", "int4": "int4"}

_ANEW = "anew"


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


def merged_links(settings: Validate, context: int, merged: Path, scratch: Path) -> list[Link]:
    """A merged checkpoint, and its float32 graph where our own graph expresses it.

    Args:
        settings: threads.
        context: of the bundle.
        merged: the checkpoint that it was exported from.
        scratch: where the graph is written.
    """
    threads = settings.threads

    def open_merged() -> Form:
        return TorchModel(merged, None, threads, "float32")

    def open_onnx() -> Form:
        folder = scratch / "onnx"
        folder.mkdir()
        write_graph(merged, folder, "fp32", 32, _float_context(merged, context), _silent)
        return OnnxModel(folder, scratch / "onnx_shown", threads, alone=False)

    links = [Link("merged", _merged_weights(merged), open_merged)]
    if _has_graph(merged):
        links.append(Link("onnx", "float32", open_onnx))
    return links


def unmerged_links(
    settings: Validate, context: int, base: Path, adapter: Path, bundle: Path, scratch: Path
) -> list[Link]:
    """The base's float32 graph with the adapter beside it: what a switchable bundle is, before rounding.

    Args:
        settings: threads.
        context: of the bundle.
        base: the checkpoint that the graph was exported from.
        adapter: the PEFT adapter, converted anew, so that a bundle's wrong one is not taken for right.
        bundle: has the tokenizer, and says the largest rank.
        scratch: where the graph and the adapter are written.
    """

    def open_onnx() -> Form:
        folder = scratch / "onnx"
        folder.mkdir()
        switchable = Switchable(read_sites(bundle).most_rank, fingerprint(base).tensors)
        longest = _float_context(base, context)
        write_graph(base, folder, "fp32", 32, longest, _silent, switchable=switchable)
        keep_unmerged({_ANEW: adapter}, base, bundle, folder, folder)
        belongs = read_adapter_record(folder / record_name(f"{_ANEW}{ADAPTER_SUFFIX}")).belongs
        file = folder / f"{_ANEW}{ADAPTER_SUFFIX}"
        factors = load_adapter(file, read_sites(folder), belongs.tokenizer, belongs.template).values
        return OnnxModel(folder, scratch / "onnx_shown", settings.threads, alone=False, factors=factors)

    return [Link("onnx", "float32", open_onnx)]


def shipped_links(settings: Validate, assistant: Assistant, bundle: Path, scratch: Path) -> list[Link]:
    """What ships: its graph with float activations, its graph, and the runtime; with the adapter in use.

    Args:
        settings: threads.
        assistant: the bundle, loaded.
        bundle: its directory.
        scratch: where graphs that do not ship are written; `weights_only` stays there.
    """
    precision, threads = assistant.manifest.precision, settings.threads
    shipped = _WEIGHTS[precision]
    adapter = adapter_in_use(assistant)
    factors = adapter.values if adapter else {}

    def open_weights_only() -> Form:
        write_variant(bundle, scratch / "weights_only", float_activations)
        folder = scratch / "weights_only"
        return OnnxModel(folder, scratch / "weights_only_shown", threads, alone=False, factors=factors)

    def open_shipped() -> Form:
        return OnnxModel(bundle, scratch / "shipped_shown", threads, alone=True, factors=factors)

    links = []
    if precision in ("int8", "int4"):
        links.append(Link("weights_only", shipped, open_weights_only))
    links.append(Link("shipped", shipped, open_shipped))
    links.append(Link("bundle", shipped, lambda: _Bundle(assistant)))
    return links


def adapter_in_use(assistant: Assistant) -> Adapter | None:
    """The adapter that answers where no task is named; None: the bare base, or one that is merged."""
    decoder = assistant.decoder
    return decoder.adapter if isinstance(decoder, Decoder) else None


def _silent(message: str, done: int, total: int) -> None:
    """Writing a graph takes a moment."""


def _float_context(checkpoint: Path, context: int) -> int:
    return min(context, read_architecture(checkpoint).max_positions)


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
