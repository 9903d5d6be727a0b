"""Base + adapters → a standard checkpoint of what they make of W0, proved element by element.

Tensors go from safetensors to safetensors a block of rows at a time: added in float32, rounded once to the
base's own type. Each block is read back from the written file and held against float64: every merged
element must lie where its definition puts it, and every other tensor must have the base's bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export.weights import Checkpoint
from pipeline.merging.plan import Onto, plan
from pipeline.merging.shard import shards, write_index
from pipeline.merging.write import write_shards
from pipeline.stage import RECORD, Progress

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf")


def merge(base: Path, adapter: Path, out: Path, progress: Progress) -> dict[str, object]:
    """Merge one adapter into a base checkpoint of the same layout; as `merge_weighted`."""
    return merge_weighted(base, [(adapter, 1.0)], out, out, progress, onto="base", shard_bytes=None)


def merge_weighted(
    base: Path,
    adapters: Sequence[tuple[Path, float]],
    out: Path,
    scratch: Path,
    progress: Progress,
    *,
    onto: Onto,
    shard_bytes: int | None,
) -> dict[str, object]:
    """Merge adapters, each times its weight, into a base checkpoint.

    Args:
        base: a checkpoint directory in safetensors, one file or shards.
        adapters: PEFT LoRA or AdaLoRA adapter directories and their weights. One adapter of weight 1 may
            have whatever is understood; several, or another weight, must be sums: Σ wᵢ sᵢ BᵢAᵢ.
        out: an empty directory; becomes a checkpoint of the base's type.
        scratch: where the files are written before they are moved to `out`, on the same file system. Whole
            ones that a merge left here that was stopped are kept, if they prove.
        progress: told of every tensor.
        onto: "nf4" adds to the base's linear layers as they are in NF4, which is what QLoRA trains on.
        shard_bytes: most bytes of tensors in one file; None keeps the base's files.

    Returns:
        Counts of changed and copied tensors, the largest error, and the relative update of each weight.

    Raises:
        CheckpointError: the base cannot be read, or a weight is NaN or infinite.
        AdapterError: an adapter is not understood or does not fit; or a merged element is not what it
            should be.
    """
    weights = Checkpoint(base)
    made = plan(weights, adapters, onto)
    files = shards(weights, made.tensors, shard_bytes)
    proofs = write_shards(files, scratch, progress)
    if scratch != out:
        for file in files:
            (scratch / file).replace(out / file)
    _copy_other_files(base, out)
    write_index(files, out)
    _write_settings(out, made.settings)
    updated = [tensor.name for tensor in made.tensors.values() if tensor.factors and tensor.start is not None]
    rounded = [tensor.name for tensor in made.tensors.values() if tensor.quantized]
    return {
        "merged_tensors": len(made.changed),
        "copied_tensors": len(made.tensors) - len(made.changed | set(rounded)),
        "quantized_tensors": len(rounded),
        "max_error": max(proof.max_error for proof in proofs.values()),
        "relative_update": {name: proofs[name].relative_update for name in updated},
    }


def _copy_other_files(base: Path, out: Path) -> None:
    """Config, tokenizer and whatever else lies beside the weights."""
    for file in sorted(base.iterdir()):
        if file.is_file() and not file.name.endswith(_WEIGHTS) and file.name != RECORD:
            shutil.copyfile(file, out / file.name)


def _write_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """What config.json has to say differently: the head is untied, layers have biases."""
    if settings:
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        text = json.dumps(config | dict(settings), indent=2) + "\n"
        (out / "config.json").write_text(text, encoding="utf-8")
