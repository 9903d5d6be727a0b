"""What a rounding says of itself, as its stage's record has it. Light, so that a report that shows it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Objective
from pipeline.provenance import json_digest
from pipeline.rounding.assignment import Form
from pipeline.stage import RECORD
from runtime.strict import parse_json, read_record

STAGE = "rounding"


@dataclass(frozen=True)
class Chosen:
    """The form of a matrix, and those that were tried.

    Attributes:
        bits: of a weight.
        block_size: weights that share one scale.
        nbytes: of integers, scales in float32 and zero points.
        kl: mean divergence, in nats per position, that this matrix alone is expected to add.
        tried: every form, the chosen one too.
    """

    bits: int
    block_size: int
    nbytes: int
    kl: float
    tried: tuple[Form, ...]


@dataclass(frozen=True)
class Norms:
    """Of a stored matrix that an adapter has changed, Frobenius norms (`pipeline.rounding.apart`).

    Attributes:
        weight: of W = W0 + BA, of the tensors that the adapter has changed.
        error: of what rounding adds to them.
        update: of BA.
        update_error: of that error, projected onto the columns of B and the rows of A.
    """

    weight: float
    error: float
    update: float
    update_error: float


@dataclass(frozen=True)
class Figures:
    """What `pipeline.rounding.round` has to say.

    Attributes:
        conversations: that were run through the checkpoint.
        positions: predictions that costs are the mean of, of conversations kept apart.
        matrix_bytes: of all matrices as chosen.
        expected_kl: the sum of their costs.
        forms: matrix → its form.
        frontier: (bytes, divergence) of every choice that no other is smaller and closer than, from the
            smallest.
        apart: matrix → norms, of those that an adapter has changed; empty where none was merged.
    """

    conversations: int
    positions: int
    matrix_bytes: int
    expected_kl: float
    forms: dict[str, Chosen]
    frontier: tuple[tuple[float, ...], ...]
    apart: dict[str, Norms]


@dataclass(frozen=True)
class Rounding:
    """A finished rounding: what was asked, and what was found."""

    objective: Objective
    figures: Figures


def rounding_of(run: Path, lineage: Mapping[str, str]) -> Rounding | None:
    """The rounding of a run, when it is the one that a report of this lineage descends from.

    None when there is none, when it is another, and when its record cannot be read: a report must not fail
    for it.
    """
    try:
        record = parse_json((run / STAGE / RECORD).read_text(encoding="utf-8"))
        if json_digest(record["outputs"]) != lineage.get(STAGE):
            return None
        figures, _ = read_record(Figures, record["figures"])
        objective = Objective.model_validate(record["config"]["objective"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if figures is None or not figures.forms or not figures.frontier:
        return None
    return Rounding(objective, figures) if all(len(point) == 2 for point in figures.frontier) else None
