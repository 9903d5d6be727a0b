"""PEFT adapters → adapter files for a switchable graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.adapter import write_adapter
from export.weights import Checkpoint
from pipeline.adapter import read_adapter
from pipeline.factors import belonging, factors
from runtime.sites import read_sites


def keep_unmerged(
    adapters: Mapping[str, Path], base: Path, exported: Path, graph: Path, out: Path
) -> dict[str, int]:
    """Write TASK.onnx_adapter and TASK.json of each task; return the ranks.

    Factors are stored in the graph's type, so that ONNX Runtime too can load them.

    Args:
        adapters: task → PEFT folder.
        base: the checkpoint that they were trained on.
        exported: a folder with the tokenizer and chat template that they are used with.
        graph: a folder with adapter_sites.json.
        out: an existing directory.

    Raises:
        AdapterError: an adapter does not fit the base, or cannot stay unmerged.
        ExportError: an adapter does not fit the graph, or the disk refuses.
    """
    checkpoint, sites = Checkpoint(base), read_sites(graph)
    ranks = {}
    for task, path in adapters.items():
        adapter = read_adapter(path)
        updates = factors(adapter, checkpoint)
        belongs = belonging(adapter, base, exported)
        ranks[task] = write_adapter(task, updates, sites, belongs, sites.dtype, out).rank
    return ranks
