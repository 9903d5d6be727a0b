"""Time and memory of a training step: LoRA beside full fine-tuning, and small ranks beside large ones.

Each way has a process of its own; all step in turn on the same rows, and ratios are taken within a round.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from pipeline.claims import guide
from pipeline.claims.finding import Finding, computed, exactly, measured, unmeasured
from pipeline.claims.learner import Stepped
from pipeline.claims.parameters import FLOAT32, TRAINED
from pipeline.claims.trainee import Kept, Way
from pipeline.data.packing import Row
from pipeline.evidence.report.figures import milliseconds, number, size
from pipeline.evidence.statistics import median
from pipeline.evidence.worker import Worker, module_command
from runtime.errors import StageError
from runtime.report import distribution, from_json

WARM_ROUNDS = 2
"""Not counted: AdamW allocates its moments in the first step."""
ROUNDS = 7

LARGEST_SHARE = 0.8
"""Of a machine's memory, that full fine-tuning may need; what its activations take comes on top."""


@dataclass(frozen=True)
class Cost:
    """What steps of one way took."""

    milliseconds: tuple[float, ...]
    peak_bytes: int
    kept: Kept


@dataclass(frozen=True)
class Costs:
    """Of each way; full is None where it does not fit the machine."""

    full: Cost | None
    lora: Cost
    small: Cost
    large: Cost


@dataclass(frozen=True)
class Ways:
    """The ways to train that the guide compares."""

    full: Way | None
    lora: Way
    small: Way
    large: Way


def does_not_fit(parameters: int, memory_bytes: int) -> str:
    """Why a base of so many parameters cannot be trained in full here; empty where it can."""
    needed = parameters * FLOAT32 * (1 + TRAINED)
    if needed <= LARGEST_SHARE * memory_bytes:
        return ""
    return (
        f"full fine-tuning keeps {size(needed)} of weights, gradients and moments, and this machine has "
        f"{size(memory_bytes)}"
    )


def measure_training_cost(ways: Ways, rows: Sequence[Row], progress: Callable[[int, int], None]) -> Costs:
    """Step every way in turn.

    Args:
        ways: what to step.
        rows: packed rows, used in order, again from the first when they run out.
        progress: told rounds done and in all.

    Raises:
        StageError: a process stopped or hangs; its last line of output is the reason.
    """
    present = {name: way for name, way in vars(ways).items() if way is not None}
    steps: dict[str, list[Stepped]] = {name: [] for name in present}
    total = WARM_ROUNDS + ROUNDS
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(name, way)) for name, way in present.items()}
        for turn in range(total):
            line = json.dumps(asdict(rows[turn % len(rows)]))
            # Back and forth, so that nobody always comes after the same other.
            for name in sorted(workers, reverse=bool(turn % 2)):
                steps[name].append(from_json(Stepped, workers[name].ask(line)))
            progress(turn + 1, total)
    found = {name: _cost(stepped) for name, stepped in steps.items()}
    return Costs(found.get("full"), found["lora"], found["small"], found["large"])


def _worker(name: str, way: Way) -> Worker:
    label = f'claims: the training "{name}"'
    return Worker(label, module_command("pipeline.claims.learner", [json.dumps(asdict(way))]))


def _cost(steps: Sequence[Stepped]) -> Cost:
    last = steps[-1]
    if last.kept is None:
        raise StageError("claims: a training process replied without making a step; run it again")
    return Cost(tuple(step.milliseconds for step in steps[WARM_ROUNDS:]), last.peak_bytes, last.kept)


def training_findings(costs: Costs, reason: str) -> list[Finding]:
    """What the guide says of a step's time and memory.

    Args:
        costs: as measured.
        reason: why full fine-tuning was not, where it was not.
    """
    lora = costs.lora
    found = [
        unmeasured(
            guide.STEP_SECONDS,
            "the guide names neither machine nor batch; here a step of LoRA, on the base of this run, takes "
            f"{_middle(lora)}{'' if costs.full is None else f', one in full {_middle(costs.full)}'}",
        ),
        measured(
            guide.FROZEN,
            exactly(lora.kept.frozen_gradients),
            "bytes of gradients that frozen weights hold after a step of LoRA",
        ),
        measured(
            guide.RANK_TIME,
            median(_ratios(costs.small, costs.large)),
            f"a step at rank {guide.SMALL_RANK} over one at {guide.LARGE_RANK}: {_middle(costs.small)} and "
            f"{_middle(costs.large)}",
        ),
        measured(
            guide.RANK_MEMORY,
            exactly(_state(costs.small) / _state(costs.large)),
            f"gradients and moments after a step at rank {guide.SMALL_RANK} over {guide.LARGE_RANK}: "
            f"{size(_state(costs.small))} and {size(_state(costs.large))}; peak memory "
            f"{size(costs.small.peak_bytes)} and {size(costs.large.peak_bytes)}",
        ),
    ]
    if costs.full is None:
        against_full = (guide.MEMORY_STATE, guide.MEMORY_PEAK, guide.SPEEDUP)
        saved = (guide.TIME_SAVED, guide.MEMORY_SAVED_STATE, guide.MEMORY_SAVED_PEAK)
        return [*found, *(unmeasured(claim, reason) for claim in (*against_full, *saved))]
    full = costs.full
    state = _state(full) / _state(lora)
    kept = (
        f"{size(_state(full))} and {size(_state(lora))} after a step; {number(_per_parameter(full))} and "
        f"{number(_per_parameter(lora))} bytes a trained parameter, {FLOAT32 * TRAINED} by count"
    )
    peaks = f"peak memory {size(full.peak_bytes)} and {size(lora.peak_bytes)}: weights and activations stay"
    speed = _ratios(full, lora)
    steps = f"{_middle(full)} and {_middle(lora)} a step: forward, and back through W0, take what they took"
    return [
        *found,
        computed(guide.MEMORY_STATE, state, kept),
        measured(guide.MEMORY_PEAK, exactly(full.peak_bytes / lora.peak_bytes), peaks),
        measured(guide.SPEEDUP, median(speed), steps),
        measured(guide.TIME_SAVED, median([1 - 1 / ratio for ratio in speed]), steps),
        computed(guide.MEMORY_SAVED_STATE, 1 - 1 / state, kept),
        measured(guide.MEMORY_SAVED_PEAK, exactly(1 - lora.peak_bytes / full.peak_bytes), peaks),
    ]


def _ratios(first: Cost, second: Cost) -> list[float]:
    return [a / b for a, b in zip(first.milliseconds, second.milliseconds, strict=True)]


def _state(cost: Cost) -> int:
    return cost.kept.gradients + cost.kept.moments


def _per_parameter(cost: Cost) -> float:
    return _state(cost) / cost.kept.trained


def _middle(cost: Cost) -> str:
    return milliseconds(distribution(cost.milliseconds).p50)
