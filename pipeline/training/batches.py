"""Packed rows → what the model is fed, and the loss on what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from pipeline.data.packing import Row
from pipeline.training.attention import completion_slots

Batch = dict[str, torch.Tensor]

IGNORED = -100
"""The label that transformers and torch leave out of a loss."""


class Rows(Dataset[Row]):
    """Packed rows, as a dataset that is whole steps long.

    Where the last step of an epoch lacks rows, one without targets stands in for each: it adds nothing to
    loss and gradient. accelerate would give processes that lack a row one that they had before.
    """

    def __init__(self, rows: Sequence[Row], rows_per_step: int) -> None:
        silent = replace(rows[0], targets=(IGNORED,) * len(rows[0].targets))
        self._rows = [*rows, *[silent] * (-len(rows) % rows_per_step)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


def collate(rows: Sequence[Row]) -> Batch:
    """One row of T tokens and S supervised positions → input_ids, position_ids (1, T), labels (1, 1 + S).

    `logits_to_keep` has the model multiply its vocabulary-wide head at the S positions alone; `slots` and
    `real` are for `packed_attention`. Labels begin with one that is ignored, since Trainer counts supervised
    tokens as if each label were the next position's, so that the first is nobody's.
    """
    (row,) = rows
    slots, real = completion_slots(row.segments)
    return {
        "input_ids": torch.tensor([row.input_ids]),
        "position_ids": torch.tensor([row.positions]),
        "slots": slots,
        "real": real,
        "logits_to_keep": torch.tensor(row.predictors),
        "labels": torch.tensor([[IGNORED, *row.targets]]),
    }


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the negative log likelihoods, in nats: logits (1, S, V), labels (1, 1 + S) → scalar, float32."""
    return cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum")


@torch.no_grad()
def mean_loss(model: torch.nn.Module, rows: Sequence[Row], device: str) -> float:
    """Negative log likelihood per supervised token of `rows`, in nats."""
    was_training = model.training
    model.eval()
    total = 0.0
    for row in rows:
        batch = {name: tensor.to(device) for name, tensor in collate([row]).items()}
        labels = batch.pop("labels")
        output: Any = model(**batch, use_cache=False)
        total += summed_loss(output.logits, labels).item()
    model.train(was_training)
    return total / sum(len(row.targets) for row in rows)
