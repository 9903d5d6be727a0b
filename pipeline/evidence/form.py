"""What the forms of a model have in common: logits to compare, and the outputs of their operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.data.packing import common_prefix
from pipeline.data.records import Record
from pipeline.data.render import Example

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Conversation:
    """Token ids of a prompt and its answer; tokens before `start` are shared and not counted."""

    id: str
    tokens: tuple[int, ...]
    start: int

    @property
    def positions(self) -> int:
        """Counted positions: each predicts one token that is known."""
        return len(self.tokens) - self.start

    def counted(self, logits: Logits) -> Logits:
        """Of logits (n, V), n the tokens, those of the counted positions.

        Position p predicts token p + 1, so the last predicts nothing that is known.
        """
        return logits[self.start - 1 : len(self.tokens) - 1]


def expected(records: Sequence[Record], examples: Sequence[Example]) -> list[Conversation]:
    """Prompts and expected answers; what all prompts share is the same every time, so it is not counted."""
    shared = len(common_prefix([example.prompt for example in examples]))
    return [
        Conversation(record.id, (*example.prompt, *example.answer), max(shared, 1))
        for record, example in zip(records, examples, strict=True)
    ]


def padded(conversations: Sequence[Conversation]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Conversations side by side: token ids (B, S) and their mask, ones and then zeros.

    Attention looks back only, so what stands behind a conversation changes nothing in it.
    """
    width = max(len(conversation.tokens) for conversation in conversations)
    ids = np.zeros((len(conversations), width), np.int64)
    mask = np.zeros_like(ids)
    for row, conversation in enumerate(conversations):
        ids[row, : len(conversation.tokens)] = conversation.tokens
        mask[row, : len(conversation.tokens)] = 1
    return ids, mask


def alike(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Indices in groups of like length, the shortest first.

    Padded to its longest, a group of several has at most `most_tokens`, a quarter of them padding at most.
    """
    groups: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[index]
        if groups and (len(groups[-1]) + 1) * length <= min(most_tokens, (tokens + length) * 4 / 3):
            groups[-1].append(index)
            tokens += length
        else:
            groups.append([index])
            tokens = length
    return groups


class Output(NamedTuple):
    """What one operator put out: values (n, width) for n tokens; see `runtime.report.SiteError`."""

    layer: int | None
    site: str
    operator: str
    values: NDArray[np.float32]


class Form(Protocol):
    """One form of the model."""

    @property
    def vocabulary(self) -> int:
        """V, the width of logits."""

    def logits(self, conversations: Sequence[Conversation]) -> list[Logits]:
        """Logits (positions, V) at the counted positions of each conversation."""

    def outputs(self, tokens: Sequence[int]) -> list[Output]:
        """The outputs of operators over some tokens, in the order of computation, or none."""
