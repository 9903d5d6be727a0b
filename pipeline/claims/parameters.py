"""Claims that follow from shapes and counts: parameters, bytes, multiplications, the worked example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.weights import Checkpoint
from pipeline.adapter import WEIGHTS, read_adapter
from pipeline.claims import guide
from pipeline.claims.finding import Finding, computed
from pipeline.claims.guide import Decoder
from pipeline.evidence.report.figures import number, share, size, times
from pipeline.fingerprint import fingerprint
from runtime.errors import UsageError

FLOAT32, BFLOAT16 = 4, 2
"""Bytes of a number."""

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits of a weight in NF4: 8 of a scale for 64 weights, 32 of another for 256 scales (arXiv 2305.14314)."""

TRAINED = 3
"""Numbers kept for each trained parameter beside itself: its gradient and AdamW's two moments."""

_PREFIX, _SUFFIX = "base_model.model.", ".lora_A.weight"


@dataclass(frozen=True)
class Counts:
    """A base and its adapter, counted.

    Attributes:
        base: parameters of the base.
        base_bytes: of its weights on disk.
        lora: parameters in the adapter's file.
        lora_bytes: of that file.
        layers: weight of the base that has an update → its shape (d, k) and the update's rank.
        scales: of the updates; most often one.
    """

    base: int
    base_bytes: int
    lora: int
    lora_bytes: int
    layers: dict[str, tuple[int, int, int]]
    scales: tuple[float, ...]

    @property
    def formula(self) -> int:
        """Σ r (d + k)."""
        return sum(update_parameters(d, k, r) for d, k, r in self.layers.values())

    @property
    def adapted(self) -> int:
        """Σ d k over the weights that have an update."""
        return sum(d * k for d, k, _ in self.layers.values())


def update_parameters(d: int, k: int, r: int) -> int:
    """Parameters of B (d, r) and A (r, k)."""
    return r * (d + k)


def decoder_update(decoder: Decoder, r: int) -> int:
    """LoRA parameters of a decoder with every projection adapted."""
    return decoder.layers * sum(update_parameters(d, k, r) for d, k in decoder.projections)


def count(base: Path, adapter: Path) -> Counts:
    """Count a checkpoint and an adapter, from the headers of their files.

    Raises:
        CheckpointError: the base cannot be read.
        AdapterError: the adapter cannot be read or is not understood.
        UsageError: the adapter has no pairs of A and B.
    """
    weights, understood = Checkpoint(base), read_adapter(adapter)
    shapes = {name: weights.shape(name) for name in weights.names}
    layers: dict[str, tuple[int, int, int]] = {}
    for name, tensor in understood.tensors.items():
        target = f"{name.removeprefix(_PREFIX).removesuffix(_SUFFIX)}.weight"
        if name.endswith(_SUFFIX) and target in shapes:
            d, k = shapes[target]
            layers[target] = (d, k, tensor.shape[0])
    if not layers:
        raise UsageError(f"{adapter} has no LoRA update of a weight of {base}; claims are about LoRA")
    scales = {understood.config.scale(name.removesuffix(".weight")) for name in layers}
    return Counts(
        base=sum(math.prod(shape) for shape in shapes.values()),
        base_bytes=sum(math.prod(shape) * weights.dtype(name).itemsize for name, shape in shapes.items()),
        lora=sum(math.prod(tensor.shape) for tensor in understood.tensors.values()),
        lora_bytes=(adapter / WEIGHTS).stat().st_size,
        layers=layers,
        scales=tuple(sorted(scales)),
    )


def from_shapes(counts: Counts) -> list[Finding]:
    """What the guide says of numbers of parameters, bytes and multiplications."""
    d, k, r = guide.D, guide.K, guide.RANK
    update = update_parameters(d, k, r)
    other = guide.QWEN_1_5B
    trained = decoder_update(other, r)
    total, lora = guide.PARAMETERS_1_5B, guide.LORA_PARAMETERS_1_5B
    per_weight = update_parameters(d, k, r) / (d * k)
    quantized = (counts.adapted * NF4_BITS / 8 + (counts.base - counts.adapted) * BFLOAT16) / (
        counts.base * BFLOAT16
    )
    return [
        computed(guide.COMPRESSION, d * k / update, f"{d * k:,} over {update:,}"),
        computed(
            guide.FORMULA,
            counts.lora / counts.formula,
            f"the adapter's file has {counts.lora:,} parameters, the formula gives {counts.formula:,}; the "
            f"{len(counts.layers)} adapted weights have {times(counts.adapted / counts.formula)} as many",
        ),
        computed(guide.SHARE_ARITHMETIC, lora / total, f"{lora:,} over {total:,}"),
        computed(
            guide.SHARE_1_5B,
            trained / other.parameters,
            f"{trained:,} of Qwen2.5-1.5B's {other.parameters:,}; the guide's count is of another rank or of "
            "fewer layers",
        ),
        computed(
            guide.SHARE_HERE,
            counts.lora / counts.base,
            f"{counts.lora:,} of {counts.base:,}; the smaller a model, the larger the share, since an update "
            "grows with a weight's sides and not with its area",
        ),
        computed(
            guide.GRADIENTS_FULL,
            total * FLOAT32,
            "a gradient is one number of four bytes a parameter; with AdamW's two moments it is "
            f"{size(total * FLOAT32 * TRAINED)}",
        ),
        computed(
            guide.GRADIENTS_LORA,
            lora * FLOAT32,
            f"likewise; with AdamW's two moments it is {size(lora * FLOAT32 * TRAINED)}",
        ),
        computed(guide.MEMORY_ARITHMETIC, total / lora, "as are the numbers of parameters"),
        computed(
            guide.ADAPTER_BYTES, counts.lora_bytes, f"{WEIGHTS} of this run, {number(counts.lora)} parameters"
        ),
        computed(
            guide.STORAGE_SAVED,
            1 - counts.lora_bytes / counts.base_bytes,
            f"{size(counts.lora_bytes)} instead of {size(counts.base_bytes)}, weights on disk",
        ),
        computed(
            guide.MERGED_FORMULA,
            counts.scales[-1],
            "PEFT adds s · B A with s = alpha / r, or alpha / √r with rsLoRA; with the guide's own "
            "alpha 32 and rank 16, s is 2",
        ),
        computed(
            guide.COMPLEXITY,
            (d * k + update) / (d * k),
            "the guide's own formula, W0 x + B (A x), takes d·k + r·(d + k) multiplications; d·r·k is what "
            "multiplying B by A would take, which nobody does for each token",
        ),
        computed(guide.WEIGHTS_EXAMPLE, 1 + per_weight, f"{d * k + update:,} over {d * k:,}"),
        computed(
            guide.WEIGHTS_HERE,
            (counts.base + counts.lora) / counts.base,
            f"{counts.lora:,} parameters beside {counts.base:,}",
        ),
        computed(
            guide.QLORA,
            quantized,
            f"weights of this base while training, the adapted {share(counts.adapted / counts.base)} in NF4 "
            f"({NF4_BITS:.3f} bits), over all in bfloat16; activations and updates stay",
        ),
        *worked_example(),
    ]


def worked_example() -> list[Finding]:
    """The guide's example, multiplied out: the largest difference from what is written there."""
    a, b, w0, x = (np.array(matrix) for matrix in (guide.A, guide.B, guide.W0, guide.INPUT))
    return [
        computed(guide.EXAMPLE_ALONE, _difference(b @ a @ x, guide.ALONE), "multiplied out"),
        computed(guide.EXAMPLE_CORRECT, _difference((w0 + b @ a) @ x, guide.CORRECT), "multiplied out"),
    ]


def _difference(found: np.ndarray, written: Sequence[Sequence[float]]) -> float:
    return float(np.abs(found - np.array(written)).max())


def from_files(base: Path, merged: Path, counts: Counts) -> list[Finding]:
    """What merging changed, tensor by tensor.

    Raises:
        CheckpointError: a checkpoint cannot be read.
    """
    before, after = fingerprint(base).tensors, fingerprint(merged).tensors
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    untouched = before.keys() - counts.layers.keys()
    others = changed & untouched
    names = before.keys() | after.keys()
    differ = {name for name in names if _form(before.get(name)) != _form(after.get(name))}
    return [
        computed(
            guide.ONLY_TARGETS,
            len(others),
            f"{len(changed - others)} of {len(counts.layers)} adapted weights differ from the base after the "
            f"merge; of {len(untouched)} other tensors {len(others)} do, digest by digest",
        ),
        computed(
            guide.STANDARD_FORMAT,
            len(differ),
            f"of {len(before)} tensors, by name, shape and type; transformers opens it without PEFT",
        ),
    ]


def _form(text: str | None) -> str:
    """Type and shape, of a tensor's `"F32 576x1536 9f86…"`; empty for none."""
    return (text or "").rpartition(" ")[0]
