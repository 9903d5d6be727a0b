"""Checkpoint + conversations → every matrix rounded, each in the form that the budget is best spent on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from export.descent import descend
from export.gptq import damped, error_factor, gptq
from export.matrix import whole_block
from export.quantize import Blocks, compact, unpacked_blocks
from export.rounded import ROUNDED
from export.shapes import EMBEDDING, HEAD
from pipeline.calibrate import first_records
from pipeline.config import Objective
from pipeline.data.records import Record
from pipeline.data.render import render
from pipeline.evidence.form import Conversation, expected
from pipeline.rounding.apart import Trained, errors_apart
from pipeline.rounding.assignment import Form, Point, frontier, within_bytes, within_kl
from pipeline.rounding.cost import embedding_cost, head_cost, layer_cost
from pipeline.rounding.layers import Layers
from pipeline.rounding.sweep import Ends, Seen, batches, sweep
from pipeline.stage import Progress
from runtime.calls import load_tools

SIZES = (32, 64, 128)
SEED = 0
ROWS = 1 << 13
"""Rows of a matrix that are rounded at a time: they know nothing of each other."""


def round_weights(
    checkpoint: Path,
    data: Sequence[Path],
    system: str,
    conversations: int,
    objective: Objective,
    bits: Sequence[int],
    plain_block_size: int,
    trained: Trained | None,
    out: Path,
    scratch: Path,
    progress: Progress,
) -> Mapping[str, Any]:
    """Weigh, round and choose.

    Args:
        checkpoint: a merged checkpoint of a Llama-shaped decoder, or a base that several tasks share.
        data: folders with `train.jsonl` and the same `tools.json`, one for each task.
        system: the system prompt.
        conversations: how many of the training splits to run, from their beginnings in turn.
        objective: what to spend, and on what.
        bits: of a weight, to choose among: 4, 8 or both.
        plain_block_size: without a budget, as many bytes are spent as the fewest bits in blocks of this
            size with 8 bits at the model's ends would take.
        trained: what the checkpoint was merged from, to measure an adapter's update apart; None for a base,
            or where it is not known.
        out: an empty directory.
        scratch: a directory, for what memory should not hold.
        progress: told of every layer.

    Returns:
        The choice, matrix by matrix, the frontier it lies on, and what became of an adapter's update.

    Raises:
        AdapterError: `trained` does not fit the checkpoint.
        CheckpointError: the checkpoint cannot be read.
        DataError: too few different conversations, or a malformed record.
        ExportError: a number is NaN or infinite.
        StageError: nothing meets the budget.
    """
    records = first_records(data, conversations)
    side_by_side = batches(_conversations(checkpoint, data[0], records, system))
    positions = int(sum(batch.counted.sum() for batch in side_by_side if batch.apart))
    layers = Layers(checkpoint)
    forms: dict[str, list[Form]] = {}
    plain = 0
    for seen in sweep(layers, side_by_side, SEED, scratch, progress):
        if isinstance(seen, Ends):
            for end in _ends(layers, seen):
                progress("rounding the vocabulary", 0, 0)
                forms[end.name] = end.tried(scratch, bits)
                plain += _plain_bytes(end.weight.shape, 8, plain_block_size)
            continue
        forms[seen.name] = _tried(seen, bits, positions, scratch)
        plain += sum(_plain_bytes(part.weight.shape, min(bits), plain_block_size) for part in seen.parts)
    points = frontier(forms)
    chosen = _chosen(points, objective, plain)
    tensors: dict[str, NDArray[np.generic]] = {}
    for name, form in chosen.forms.items():
        tensors |= load_file(_file(scratch, name, form.bits, form.block_size))
    save_file(tensors, out / ROUNDED)
    if trained is not None:
        progress("measuring what the adapter changed", 0, 0)
    return {
        "conversations": len(records),
        "positions": positions,
        "matrix_bytes": chosen.nbytes,
        "expected_kl": chosen.kl,
        "forms": {name: _described(chosen.forms[name], each) for name, each in sorted(forms.items())},
        "frontier": [[point.nbytes, point.kl] for point in points],
        "apart": {} if trained is None else errors_apart(checkpoint, trained, out),
    }


def _tried(seen: Seen, bits: Sequence[int], positions: int, scratch: Path) -> list[Form]:
    """Every form of a layer's matrix, rounded and weighed."""
    columns, found = seen.parts[0].weight.shape[1], []
    reads = [_Reads.of(part.inputs) for part in seen.parts]
    for each, size in _sizes(columns, bits):
        parts = [_rounded(part.weight, of, each, size) for part, of in zip(seen.parts, reads, strict=True)]
        cost = sum(
            layer_cost(part, unpacked_blocks(blocks, columns, each), positions)
            for part, blocks in zip(seen.parts, parts, strict=True)
        )
        found.append(_kept(scratch, seen.name, _stacked(parts), each, size, cost))
    return found


@dataclass(frozen=True)
class _Reads:
    """What a matrix [N, K] reads: H with damping, and the factor of its inverse, [K, K] both."""

    hessian: NDArray[np.float32]
    factor: NDArray[np.float32]

    @staticmethod
    def of(inputs: NDArray[np.floating]) -> _Reads:
        return _Reads(damped(inputs).astype(np.float32), error_factor(inputs))


@dataclass(frozen=True)
class _End:
    """A matrix [V, hidden] at an end of the model, or at both."""

    name: str
    weight: NDArray[np.float32]
    ends: Ends
    looked_up: bool
    multiplied: bool

    def tried(self, scratch: Path, bits: Sequence[int]) -> list[Form]:
        """Every form, rounded and weighed."""
        columns = self.weight.shape[1]
        reads = _Reads.of(self.ends.inputs if self.multiplied else np.eye(columns))
        found = []
        for each, size in _sizes(columns, bits):
            blocks = _rounded(self.weight, reads, each, size)
            rounded = unpacked_blocks(blocks, columns, each)
            cost = head_cost(self.ends, self.weight, rounded) if self.multiplied else 0.0
            cost += embedding_cost(self.ends, self.weight, rounded) if self.looked_up else 0.0
            found.append(_kept(scratch, self.name, blocks, each, size, cost))
        return found


def _ends(layers: Layers, ends: Ends) -> Iterator[_End]:
    tied = layers.architecture.tied
    yield _End(EMBEDDING, layers.tensors.read_float32(EMBEDDING), ends, True, tied)
    if not tied:
        yield _End(HEAD, layers.tensors.read_float32(HEAD), ends, False, True)


def _sizes(columns: int, bits: Sequence[int]) -> list[tuple[int, int]]:
    """Bits and block sizes to try; only whole blocks, where there are any."""
    return [(each, size) for each in bits for size in sorted({whole_block(columns, size) for size in SIZES})]


def _rounded(weight: NDArray[np.float32], reads: _Reads, bits: int, block_size: int) -> Blocks:
    parts = []
    for at in range(0, len(weight), ROWS):
        rows = weight[at : at + ROWS]
        part = gptq(rows, reads.factor, bits, block_size, bits == 8)
        # 8 bits leave nothing worth a descent.
        parts.append(part if bits == 8 else descend(rows, part, reads.hessian, bits))
    return _stacked(parts)


def _stacked(parts: Sequence[Blocks]) -> Blocks:
    """Matrices of the same form, one under the other."""
    zeros = [part.zero_points for part in parts if part.zero_points is not None]
    return Blocks(
        np.concatenate([part.packed for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(zeros) if zeros else None,
    )


def _kept(scratch: Path, name: str, blocks: Blocks, bits: int, block_size: int, cost: float) -> Form:
    """A form that was tried; what it looks like lies in scratch until the choice is made."""
    tensors: dict[str, NDArray[np.generic]] = {
        f"{name}.packed": blocks.packed,
        f"{name}.scales": compact(blocks.scales),
    }
    if blocks.zero_points is not None:
        tensors[f"{name}.zero_points"] = blocks.zero_points
    save_file(tensors, _file(scratch, name, bits, block_size))
    zeros = 0 if blocks.zero_points is None else blocks.zero_points.nbytes
    # Scales count as ONNX Runtime multiplies with them: what a token reads is what decoding takes.
    return Form(bits, block_size, blocks.packed.nbytes + blocks.scales.nbytes + zeros, cost)


def _file(scratch: Path, name: str, bits: int, block_size: int) -> Path:
    return scratch / f"{name}-{bits}-{block_size}.safetensors"


def _chosen(points: Sequence[Point], objective: Objective, plain: int) -> Point:
    if objective.minimize == "bytes" and objective.budget_kl is not None:
        return within_kl(points, objective.budget_kl)
    return within_bytes(points, plain if objective.budget_bytes is None else objective.budget_bytes)


def _plain_bytes(shape: tuple[int, ...], bits: int, block_size: int) -> int:
    """Of a matrix [N, K] in blocks of one size."""
    rows, columns = shape
    size = whole_block(columns, max(block_size, min(SIZES)))
    blocks = -(-columns // size)
    zero_points = -(-blocks // 2) if bits == 4 else 0
    return rows * (blocks * (size * bits // 8 + 4) + zero_points)


def _described(chosen: Form, tried: Sequence[Form]) -> dict[str, Any]:
    """The form of a matrix, and what the others would have cost, which is why it is this one."""
    return {**asdict(chosen), "tried": [asdict(form) for form in tried]}


def _conversations(
    checkpoint: Path, data: Path, records: Sequence[Record], system: str
) -> list[Conversation]:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    tools = load_tools(data / "tools.json")
    return expected(records, [render(record, tokenizer, tools, system) for record in records])
