"""Base + LoRA adapter → a standard checkpoint of W0 + s·BA, proved element by element.

Tensors go from safetensors to safetensors a block of rows at a time: added in float32, rounded once to
the base's own type. Then the written file is read back: every merged element must lie where a float64
W0 + s·BA puts it, and every other tensor must have the base's digest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from export.weights import INDEX, SINGLE, Array, Checkpoint, SafetensorsWriter, read_header
from pipeline.adapter import Adapter, Update, read_adapter, read_factor, updates
from pipeline.fingerprint import tensor_digest
from pipeline.rows import row_blocks
from pipeline.stage import RECORD, Progress
from runtime.errors import AdapterError, CheckpointError

FLOAT32_BITS = 23
PRECISIONS = {"float32": (FLOAT32_BITS, -126), "float16": (10, -14), "bfloat16": (7, -126)}
"""Stored bits of the significand and smallest exponent: ulp(x) = 2^(max(exponent of x, smallest) − bits)."""

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf")
_THREADS = 2
_COPY_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Proof:
    """How one merged tensor compares with a float64 W0 + s·BA.

    Attributes:
        max_error: largest distance, as a share of what rounding explains: at most 1.
        relative_update: ‖s·BA‖ / ‖W0‖ (Frobenius).
    """

    max_error: float
    relative_update: float


def merge(base: Path, adapter: Path, out: Path, progress: Progress) -> dict[str, object]:
    """Merge an adapter into a base checkpoint.

    Args:
        base: a checkpoint directory in safetensors, one file or shards.
        adapter: a PEFT LoRA adapter directory.
        out: an empty directory; becomes a checkpoint of the base's layout and type.
        progress: told of every tensor.

    Returns:
        Counts of merged and copied tensors, the largest error, and the relative update of each tensor.

    Raises:
        CheckpointError: the base cannot be read, or a weight is NaN or infinite.
        AdapterError: the adapter is not understood or does not fit; or a merged element is not W0 + s·BA.
    """
    weights, understood = Checkpoint(base), read_adapter(adapter)
    planned = {update.target: update for update in updates(understood, weights)}
    _refuse_other_types(weights, planned)
    shards = _shards(base, weights, planned)
    # Blocks are worked on side by side; a BLAS that splits each of them again only waits for itself.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(_THREADS) as pool:
        _write(weights, understood, planned, shards, out, pool, progress)
        _copy_other_files(base, out)
        _write_layout(weights, planned, shards, out)
        proofs = _prove(weights, Checkpoint(out), understood, planned, pool, progress)
    return {
        "merged_tensors": len(planned),
        "copied_tensors": sum(map(len, shards.values())) - len(planned),
        "max_error": max(proof.max_error for proof in proofs.values()),
        "relative_update": {name: proof.relative_update for name, proof in proofs.items()},
    }


def _refuse_other_types(base: Checkpoint, planned: Mapping[str, Update]) -> None:
    for update in planned.values():
        if base.dtype(update.source).name not in PRECISIONS:
            raise CheckpointError(
                f'tensor "{update.source}" is {base.dtype(update.source)}; '
                f"an update can be added to {', '.join(PRECISIONS)}"
            )


def _shards(base: Path, weights: Checkpoint, planned: Mapping[str, Update]) -> dict[str, list[str]]:
    """File name → tensors in the order they are written; an untied head goes beside its embedding."""
    files = [SINGLE] if (base / SINGLE).is_file() else sorted(set(_weight_map(base).values()))
    shards = {file: list(read_header(base / file)[0]) for file in files}
    for update in planned.values():
        if update.target not in weights.names:
            next(names for names in shards.values() if update.source in names).append(update.target)
    return shards


def _weight_map(base: Path) -> dict[str, str]:
    index: dict[str, dict[str, str]] = json.loads((base / INDEX).read_text(encoding="utf-8"))
    return index["weight_map"]


def _write(
    base: Checkpoint,
    adapter: Adapter,
    planned: Mapping[str, Update],
    shards: Mapping[str, Sequence[str]],
    out: Path,
    pool: Executor,
    progress: Progress,
) -> None:
    total = sum(map(len, shards.values()))
    done = 0
    for file, names in shards.items():
        sources = {name: planned[name].source if name in planned else name for name in names}
        layout = {name: (base.dtype(source), base.shape(source)) for name, source in sources.items()}
        with SafetensorsWriter(out / file, layout, {"format": "pt"}) as writer:
            for name in names:
                if update := planned.get(name):
                    for block in _sums(base, adapter, update, pool):
                        writer.append(name, block)
                else:
                    for start, stop in row_blocks(base.shape(name), _COPY_ELEMENTS):
                        writer.append(name, base.read(name, start, stop))
                done += 1
                progress("merging", done, total)


def _sums(base: Checkpoint, adapter: Adapter, update: Update, pool: Executor) -> Iterator[Array]:
    """W0 + s·BA in blocks of rows: float32, rounded once to the base's type."""
    a, b = _factors(adapter, update)
    dtype, scale = base.dtype(update.source), np.float32(update.scale)
    bits, smallest = PRECISIONS[dtype.name]
    limit = (2.0 - 2.0**-bits) * 2.0 ** (1 - smallest)  # the largest finite value

    def block(rows: tuple[int, int]) -> Array:
        total = scale * (b[slice(*rows)] @ a)
        total += base.read_float32(update.source, *rows)
        if not max(total.max(), -total.min()) <= limit:
            raise AdapterError(
                f'"{update.target}" is beyond what {dtype} can hold once the adapter is added; '
                "merge onto a base in float32 or bfloat16"
            )
        return total.astype(dtype)

    return pool.map(block, row_blocks(base.shape(update.source)))


def _factors(adapter: Adapter, update: Update) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return read_factor(adapter.tensors[update.a]), read_factor(adapter.tensors[update.b])


def _copy_other_files(base: Path, out: Path) -> None:
    """Config, tokenizer and whatever else lies beside the weights."""
    for file in sorted(base.iterdir()):
        if file.is_file() and not file.name.endswith(_WEIGHTS) and file.name != RECORD:
            shutil.copyfile(file, out / file.name)


def _write_layout(
    base: Checkpoint, planned: Mapping[str, Update], shards: Mapping[str, Sequence[str]], out: Path
) -> None:
    """The index of shards; and where the head got an update of its own, it is tied no longer."""
    if list(shards) != [SINGLE]:
        size = sum(file.stat().st_size - _header_bytes(file) for file in map(out.joinpath, shards))
        weight_map = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    if any(update.target not in base.names for update in planned.values()):
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        config["tie_word_embeddings"] = False
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _header_bytes(file: Path) -> int:
    with file.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def _prove(
    base: Checkpoint,
    merged: Checkpoint,
    adapter: Adapter,
    planned: Mapping[str, Update],
    pool: Executor,
    progress: Progress,
) -> dict[str, Proof]:
    """Read the written files back.

    Raises:
        AdapterError: an element is further from W0 + s·BA than rounding explains, or a tensor without an
            update differs from the base's.
    """
    untouched = [name for name in merged.names if name not in planned]
    total = len(merged.names)
    same = pool.map(lambda name: tensor_digest(merged, name) == tensor_digest(base, name), untouched)
    for done, (name, equal) in enumerate(zip(untouched, same, strict=True), start=1):
        if not equal:
            raise AdapterError(f'tensor "{name}" has no update but differs from the base; merge again')
        progress("proving", done, total)
    found = pool.map(lambda update: _proof(base, merged, adapter, update), planned.values())
    proofs: dict[str, Proof] = {}
    for done, (name, proof) in enumerate(zip(planned, found, strict=True), start=len(untouched) + 1):
        proofs[name] = proof
        progress("proving", done, total)
    return proofs


def _proof(base: Checkpoint, merged: Checkpoint, adapter: Adapter, update: Update) -> Proof:
    """Compare every element with float64; the tolerance is half an ulp plus what float32 can lose.

    What float32 loses: the rank products and sums of BA and the scale each round to 2⁻²⁴ of s·|B||A| at
    most; adding W0 rounds to 2⁻²⁴ of the sum, which the stored value gives to within a factor of two, and
    which in float32 is the half ulp itself.
    """
    a, b = _factors(adapter, update)
    a64, scaled = a.astype(np.float64), b.astype(np.float64) * update.scale
    a_size, b_size = np.abs(a), np.abs(b) * np.float32(abs(update.scale) * (update.rank + 2) * 2.0**-24)
    bits, smallest = PRECISIONS[merged.dtype(update.target).name]
    worst = update_square = base_square = 0.0
    for start, stop in row_blocks(merged.shape(update.target)):
        stored = merged.read_float32(update.target, start, stop)
        original = base.read_float32(update.source, start, stop)
        exact = scaled[start:stop] @ a64
        update_square += float(np.vdot(exact, exact))
        base_square += float(np.vdot(original, original))
        exact += original
        exact -= stored
        error = np.abs(exact, out=exact).astype(np.float32)
        size = np.abs(stored)
        tolerance = b_size[start:stop] @ a_size
        tolerance += _half_ulp(size, bits, smallest)
        if bits < FLOAT32_BITS:
            tolerance += np.float32(2.0**-FLOAT32_BITS) * size
        if not (error <= tolerance).all():
            row, column = np.unravel_index(np.argmax(error - tolerance), error.shape)
            raise AdapterError(
                f'merged tensor "{update.target}" is not W0 + s·BA at [{start + row}, {column}]: '
                f"off by {error[row, column]:.3g} where rounding explains {tolerance[row, column]:.3g}; "
                "merge again"
            )
        error /= tolerance
        worst = max(worst, float(error.max()))
    return Proof(worst, float(np.sqrt(update_square / base_square)) if base_square else float("inf"))


def _half_ulp(size: NDArray[np.float32], bits: int, smallest: int) -> NDArray[np.float32]:
    """Half the unit of the last place of absolute values: their exponent alone, scaled."""
    power = (size.view(np.uint32) & np.uint32(0x7F80_0000)).view(np.float32)
    np.maximum(power, np.float32(2.0**smallest), out=power)
    power *= np.float32(2.0 ** (-bits - 1))
    return power
