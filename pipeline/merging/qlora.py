"""A QLoRA adapter (arXiv 2305.14314) was trained beside 4-bit weights: what to merge it onto is measured.

The unmerged model is the base in NF4, dequantized, with the adapter beside it. Merged onto those weights the
adapter is what it was; merged onto W0 it meets weights that it never saw, which may still be the better
checkpoint where the rounding of W0 matters more than the adapter's fit. Parity decides, and both figures are
kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import get_args

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.data.records import read_records
from pipeline.data.render import render
from pipeline.evidence.chain import Link, measure_chain
from pipeline.evidence.form import Conversation, expected
from pipeline.evidence.torch_model import TorchModel
from pipeline.merge import merge_weighted
from pipeline.merging.plan import Onto
from pipeline.stage import Progress
from pipeline.training.record import trained_in_nf4
from runtime.calls import load_tools
from runtime.report import Comparison

CONVERSATIONS = 32
"""Validation conversations that the candidates are compared on: some thousand positions."""
_NEAR_TIE = 1e-3


def trained_beside(base: Path, adapter: Path, scratch: Path, progress: Progress) -> Path:
    """The base as an adapter knew it: itself, or for QLoRA what NF4 makes of it, written to `scratch`.

    Raises:
        CheckpointError: the base cannot be read or written.
        AdapterError: the adapter's training record cannot be read.
    """
    if not trained_in_nf4(adapter):
        return base
    folder = scratch / "nf4"
    folder.mkdir()
    merge_weighted(base, [], folder, folder, progress, onto="nf4", shard_bytes=None)
    return folder


def merge_closer(
    base: Path,
    adapter: Path,
    data: Path,
    system: str,
    threads: int,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> dict[str, object]:
    """Merge a QLoRA adapter onto both bases and keep the one closer to the unmerged QLoRA model.

    Args:
        base: the checkpoint in full precision.
        adapter: an adapter that was trained by `method = "qlora"`.
        data: a folder with `validation.jsonl` and `tools.json`.
        system: the system prompt.
        threads: that the models compute with.
        out: an empty directory; becomes the checkpoint.
        scratch: an empty directory on the same file system.
        progress: told how it goes.

    Returns:
        The figures of the merge that was kept, what it was merged `onto`, and of both what they differ from
        the unmerged model: mean KL in nats per position, and the share of positions with the same token.

    Raises:
        CheckpointError: the base cannot be read or written.
        AdapterError: the adapter is not understood or does not fit.
        DataError: the records are malformed.
    """
    merged: dict[str, Path] = {}
    figures: dict[str, dict[str, object]] = {}
    for onto in get_args(Onto):
        merged[onto] = scratch / f"onto-{onto}"
        merged[onto].mkdir()
        figures[onto] = merge_weighted(
            base, [(adapter, 1.0)], merged[onto], merged[onto], progress, onto=onto, shard_bytes=None
        )
    origin = TorchModel(trained_beside(base, adapter, scratch, progress), adapter, threads, "float32")
    hops = measure_chain(
        origin,
        [
            Link(onto, "float32", partial(TorchModel, folder, None, threads, "float32"))
            for onto, folder in merged.items()
        ],
        _conversations(base, data, system),
        _NEAR_TIE,
        threads,
        scratch,
        progress,
    )
    found = {hop.origin.name: hop.origin for hop in hops}
    onto = min(found, key=lambda name: found[name].kl_mean.value)
    for file in merged[onto].iterdir():
        file.replace(out / file.name)
    return figures[onto] | {
        "onto": onto,
        "from_unmerged": {name: _difference(comparison) for name, comparison in found.items()},
    }


def _conversations(base: Path, data: Path, system: str) -> list[Conversation]:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base, local_files_only=True)
    tools = load_tools(data / "tools.json")
    records = read_records(data / "validation.jsonl")[:CONVERSATIONS]
    return expected(records, [render(record, tokenizer, tools, system) for record in records])


def _difference(comparison: Comparison) -> Mapping[str, float]:
    return {"kl_mean": comparison.kl_mean.value, "same_token": comparison.top1.value}
