"""Logits → token id. Pure functions on one row of logits (V,)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ConstraintError, UsageError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most probable token; above 0 draws from softmax(logits / temperature).
        top_k: draw only among this many most probable tokens (arXiv 1805.04833); None is all.
        top_p: draw only among the fewest tokens whose probability sums to this (arXiv 1904.09751).
        seed: the same seed draws the same tokens.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            UsageError: naming the value.
        """
        if not 0.0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k must be 1 or more, not {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.seed < 0:
            raise UsageError(f"seed must be 0 or more, not {self.seed}")


GREEDY = Sampling()


def choose_among(
    allowed: NDArray[np.int64], logits: NDArray[np.float32], sampling: Sampling, random: np.random.Generator
) -> int:
    """The next token of those `allowed`, ids in ascending order.

    Raises:
        ConstraintError: nothing is allowed.
    """
    if allowed.size == 0:
        raise ConstraintError("the grammar allows no token here, so there is no valid answer")
    return int(allowed[choose(logits[allowed], sampling, random)])


def choose(logits: NDArray[np.float32], sampling: Sampling, random: np.random.Generator) -> int:
    """The next token. Ties go to the lowest id, so that greedy answers are reproducible."""
    if sampling.temperature == 0.0:
        return int(np.argmax(logits))
    return int(random.choice(logits.size, p=probabilities(logits, sampling)))


def probabilities(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """What a temperature above 0 draws from: temperature first, then top-k, then top-p; sums to 1."""
    scaled = (logits.astype(np.float64) - logits.max()) / sampling.temperature
    # Stable, so that equal logits are kept in order of id.
    order = np.argsort(-scaled, kind="stable")
    if sampling.top_k is not None:
        order = order[: sampling.top_k]
    kept = np.exp(scaled[order])
    kept /= kept.sum()
    if sampling.top_p < 1.0:
        # Every token before which less than top_p has been gathered: always at least one.
        inside = np.cumsum(kept) - kept < sampling.top_p
        order, kept = order[inside], kept[inside] / kept[inside].sum()
    result = np.zeros(logits.size, np.float64)
    result[order] = kept
    return result
