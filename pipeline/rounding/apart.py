"""What rounding does to an adapter's update, measured apart from what it does to the whole weight.

A merged weight is W = W0 + BA, and rounding changes it by E. What the update says lies in the columns that B
spans and the rows that A spans; there the error is PᴮEPᴬ, P the orthogonal projections. It is held against BA
as E is against W: an update is a small part of a weight, and a small error of the one may be a large one of
the other.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.quantize import unpacked_blocks
from export.rounded import Rounded
from export.shapes import EMBEDDING, HEAD
from export.weights import Checkpoint
from pipeline.adapter import Update, parts, read_adapter
from pipeline.rounding.layers import SITES
from pipeline.rounding.record import Norms


@dataclass(frozen=True)
class Trained:
    """What a checkpoint was merged from."""

    base: Path
    adapter: Path


def errors_apart(checkpoint: Path, trained: Trained, rounded: Path) -> dict[str, dict[str, Any]]:
    """Stored matrix → its `Norms` as JSON; no more than those with a BA.

    An update with lengths of its own (DoRA) is not a BA alone, and is left out.

    Args:
        checkpoint: the merged one.
        trained: what it was merged from.
        rounded: a folder with its matrices rounded.

    Raises:
        AdapterError: adapter and base do not fit.
        CheckpointError: a tensor cannot be read.
        ExportError: the folder is of another checkpoint.
    """
    merged, matrices = Checkpoint(checkpoint), Rounded(rounded)
    updates = parts(read_adapter(trained.adapter), Checkpoint(trained.base)).updates
    found = {}
    for name, members in _stored(merged).items():
        if not any(member in updates for member in members):
            continue
        weights = [merged.read_float32(member) for member in members]
        rows, columns = sum(map(len, weights)), weights[0].shape[1]
        blocks, bits, _ = matrices.matrix(name, rows, columns)
        values, at, squares = unpacked_blocks(blocks, columns, bits), 0, np.zeros(4)
        for member, weight in zip(members, weights, strict=True):
            error = values[at : at + len(weight)] - weight
            at += len(weight)
            if member in updates:
                squares += _squares(weight, error, updates[member])
        if squares[2]:
            found[name] = asdict(Norms(*np.sqrt(squares).tolist()))
    return found


def _stored(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """Stored matrix → the tensors that are stacked in it."""
    stored: dict[str, tuple[str, ...]] = {
        name: (name,) for name in (EMBEDDING, HEAD) if name in checkpoint.names
    }
    for name in checkpoint.names:
        for site in SITES:
            if name.endswith(first := f".{site.modules[0]}.weight"):
                layer = name.removesuffix(first)
                stored[f"{layer}.{site.name}.weight"] = tuple(
                    f"{layer}.{each}.weight" for each in site.modules
                )
    return stored


def _squares(weight: NDArray[np.float32], error: NDArray[np.float32], update: Update) -> NDArray[np.float64]:
    """The squares of the four norms, of one tensor."""
    b, a = update.factors.read()
    if update.magnitude is not None or not b.shape[1]:
        return np.zeros(4)
    left, right = _spanned(b), _spanned(a.T)
    projected = left.T @ error @ right
    return np.array(
        [
            np.square(weight, dtype=np.float64).sum(),
            np.square(error, dtype=np.float64).sum(),
            # ‖BA‖² without the matrix itself.
            ((b.T @ b) * (a @ a.T)).sum(),
            np.square(projected).sum(),
        ]
    )


def _spanned(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """An orthonormal basis of what columns [N, r] span; a direction that is none counts for nothing."""
    left, values, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, values > values[0] * max(columns.shape) * np.finfo(np.float64).eps]
