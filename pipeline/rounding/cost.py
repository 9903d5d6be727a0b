"""What a rounded matrix costs: the divergence that it alone adds, in nats per position."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.rounding.sweep import Ends, Part

ROWS = 256
"""Positions whose probabilities, and tokens whose errors, are in memory at once."""


def layer_cost(part: Part, rounded: NDArray[np.float32], positions: int) -> float:
    """To second order, of a module's matrix: half the mean of (gᵀ dW x)², outputs taken for independent.

    Args:
        part: the matrix [N, K] and what it reads.
        rounded: what it became, [N, K].
        positions: how many predictions `part.apart` was weighed with.
    """
    error = rounded - part.weight
    squares = np.einsum("nk,nk->n", error @ part.apart, error, dtype=np.float64)
    return float(squares @ part.rows) / (2 * positions)


def embedding_cost(ends: Ends, weight: NDArray[np.float32], rounded: NDArray[np.float32]) -> float:
    """To second order, of the matrix [V, hidden] that tokens are looked up in."""
    squares = np.empty(len(weight))
    for at in range(0, len(weight), ROWS):
        error = rounded[at : at + ROWS] - weight[at : at + ROWS]
        squares[at : at + ROWS] = np.einsum("vk,vk->v", error, error, dtype=np.float64)
    return float(squares @ ends.embedding) / 2


def head_cost(ends: Ends, weight: NDArray[np.float32], rounded: NDArray[np.float32]) -> float:
    """Exactly, of the matrix [V, hidden] that the last hidden state is multiplied by."""
    right, wrong = torch.from_numpy(weight), torch.from_numpy(rounded)
    total = 0.0
    for at in range(0, len(ends.hidden), ROWS):
        hidden = ends.hidden[at : at + ROWS]
        expected = torch.log_softmax(hidden @ right.T, dim=-1)
        found = torch.log_softmax(hidden @ wrong.T, dim=-1)
        total += float((expected.exp() * (expected - found)).sum(dtype=torch.float64))
    return max(total, 0.0) / len(ends.hidden)
