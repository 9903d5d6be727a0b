"""What is learnt in the same few steps on the same rows: LoRA beside full fine-tuning, ranks, layers, rates.

Every training starts from the base and lowers its learning rate to zero over `STEPS`. Full
fine-tuning and each rank have a best rate of their own, found by decades, since one for all would favour one.
Losses are compared conversation by conversation on sentence forms that training does not have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from pipeline.claims import guide
from pipeline.claims.finding import Claim, Finding, exactly, measured, unmeasured
from pipeline.claims.guide import ATTENTION, FEED_FORWARD
from pipeline.claims.trainee import Losses, Way, trainee
from pipeline.claims.training_cost import Ways
from pipeline.data.packing import Row
from pipeline.evidence.report.figures import number
from pipeline.evidence.statistics import estimate
from runtime.errors import TrainingError
from runtime.report import Estimate

STEPS = 16
"""Some two hundred steps in all: so few, since full fine-tuning takes its time on two cores."""
FIRST_RATES = (-4, -3)
"""Powers of ten that are tried first; then one beside the better, until both beside the best are worse."""
LOWEST, HIGHEST = -7, 0

_VARIANT = f"what sets it apart shows over a whole training and several seeds, not in {STEPS} steps of one"


@dataclass(frozen=True)
class Learnt:
    """One training's rate and losses on validation conversations."""

    rate: float
    losses: Losses


@dataclass(frozen=True)
class Quality:
    """Validation losses after the same steps on the same rows.

    Attributes:
        base: before any step.
        full: every weight, at its best rate; None where it does not fit the machine.
        lora: at its best rate.
        small: a small rank, at its best rate.
        large: a large rank, likewise.
        attention: attention projections alone, at the small rank and its rate; None where it ran off.
        feed_forward: MLP projections alone, likewise.
    """

    base: Losses
    full: Learnt | None
    lora: Learnt
    small: Learnt
    large: Learnt
    attention: Losses | None
    feed_forward: Losses | None


def measure_quality(
    ways: Ways,
    training: Sequence[Row],
    validation: Sequence[Row],
    progress: Callable[[int, int], None],
    steps: int = STEPS,
) -> Quality:
    """Train every way.

    Args:
        ways: full fine-tuning where it fits, and LoRA at three ranks.
        training: rows, used in order, again from the first when they run out.
        validation: rows that are never trained on.
        progress: told steps done and in all.
        steps: of each training.

    Raises:
        CheckpointError: the base cannot be loaded.
        TrainingError: a way ran off to NaN or infinity at every rate.
    """
    done = count(1)
    # At the fewest; where the best rate lies further off, more come to it.
    planned = steps * (2 + (len(FIRST_RATES) + 1) * (3 if ways.full is None else 4))

    def learn(way: Way, rate: float) -> Losses | None:
        with trainee(way) as model:
            for step in range(steps):
                model.step(training[step % len(training)], rate * (1 - step / steps))
                made = next(done)
                progress(made, max(made, planned))
            return model.losses(validation)

    def best(name: str, way: Way) -> Learnt:
        power, losses = best_power(lambda power: learn(way, 10.0**power))
        if losses is None:
            raise TrainingError(
                f"claims: the loss of {name} became NaN or infinite at every learning rate; "
                "train in float32 with --set train.dtype=float32"
            )
        return Learnt(10.0**power, losses)

    with trainee(ways.lora) as fresh:
        before = fresh.losses(validation)
    if before is None:
        raise TrainingError("claims: the loss of the base is not finite; make it again with `cockpit build`")
    full = None if ways.full is None else best("full fine-tuning", ways.full)
    lora = best("LoRA", ways.lora)
    small = best(f"LoRA of rank {guide.SMALL_RANK}", ways.small)
    return Quality(
        base=before,
        full=full,
        lora=lora,
        small=small,
        large=best(f"LoRA of rank {guide.LARGE_RANK}", ways.large),
        attention=learn(_on(ways.small, ATTENTION), small.rate),
        feed_forward=learn(_on(ways.small, FEED_FORWARD), small.rate),
    )


def best_power(learn: Callable[[int], Losses | None]) -> tuple[int, Losses | None]:
    """The power of ten at which least is lost, and what is; both powers beside it have been tried.

    Args:
        learn: a power → losses; None, where training ran off, is worse than any.
    """
    tried = {power: learn(power) for power in FIRST_RATES}
    while True:
        best = min(sorted(tried), key=lambda power: _mean(tried[power]))
        beside = [
            power for power in (best - 1, best + 1) if power not in tried and LOWEST <= power <= HIGHEST
        ]
        if not beside:
            return best, tried[best]
        tried[beside[0]] = learn(beside[0])


def _mean(losses: Losses | None) -> float:
    return math.inf if losses is None else losses.mean


def _on(way: Way, targets: tuple[str, ...]) -> Way:
    assert way.lora is not None
    return replace(way, lora=replace(way.lora, targets=targets))


def quality_findings(quality: Quality, reason: str) -> list[Finding]:
    """What the guide says of what is learnt.

    Args:
        quality: as measured.
        reason: why full fine-tuning was not, where it was not.
    """
    small, large = guide.SMALL_RANK, guide.LARGE_RANK
    attention, both = quality.attention, quality.small.losses
    rate = f"at rate {quality.small.rate:g}"
    return [
        *_against_full(quality, reason),
        unmeasured(
            guide.GENERALIZES,
            'the guide gives no figure for "well"; on sentence forms that training does not have, perplexity '
            f"went from {_perplexity(quality.base)} to {_perplexity(quality.lora.losses)} in {STEPS} steps",
        ),
        _compared(
            guide.RANK_QUALITY,
            quality.large.losses,
            quality.small.losses,
            f"rank {large} at rate {quality.large.rate:g} over rank {small} at {quality.small.rate:g}, each "
            "its best by decades",
        ),
        _compared(
            guide.ATTENTION_FIRST,
            attention,
            quality.feed_forward,
            f"attention over MLP, both at rank {small}, which is fewer parameters for attention, {rate}",
        ),
        _compared(guide.MLP_ADDS, both, attention, f"all seven projections over attention, {rate}"),
        *(unmeasured(claim, _VARIANT) for claim in (guide.ADALORA, guide.DORA, guide.LORA_PLUS)),
    ]


def _against_full(quality: Quality, reason: str) -> list[Finding]:
    if quality.full is None:
        return [unmeasured(claim, reason) for claim in (guide.CLOSE, guide.EXCEEDS, guide.RATE)]
    full, lora = quality.full, quality.lora
    note = f"LoRA at rate {lora.rate:g}, full at {full.rate:g}, each its best by decades"
    return [
        _compared(guide.CLOSE, lora.losses, full.losses, note),
        _compared(guide.EXCEEDS, lora.losses, full.losses, note),
        measured(
            guide.RATE,
            exactly(lora.rate / full.rate),
            f"best rates by decades, {STEPS} steps: {lora.rate:g} and {full.rate:g}; short trainings like "
            "high rates, both ways",
        ),
    ]


def _compared(claim: Claim, first: Losses | None, second: Losses | None, note: str) -> Finding:
    if first is None or second is None:
        return unmeasured(claim, f"{note}: one of the two ran off to NaN or infinity")
    return measured(
        claim,
        perplexity_ratio(first, second),
        f"perplexity {_perplexity(first)} over {_perplexity(second)} after {STEPS} steps, one seed; {note}",
    )


def perplexity_ratio(first: Losses, second: Losses) -> Estimate:
    """exp of the difference in nats per token, over the same conversations, drawn again as pairs."""
    difference = np.subtract(first.nats, second.nats)
    tokens = np.array(first.tokens, np.float64)
    return estimate(
        len(tokens), lambda chosen: np.exp(difference[chosen].sum(axis=1) / tokens[chosen].sum(axis=1))
    )


def _perplexity(losses: Losses) -> str:
    return number(float(np.exp(losses.mean)))
