"""What the forms of a model have in common: logits to compare, and the outputs of their operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

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

    def logits(self, conversation: Conversation) -> Logits:
        """Logits (positions, V) at the conversation's counted positions."""

    def outputs(self, tokens: Sequence[int]) -> list[Output]:
        """The outputs of operators over some tokens, in the order of computation, or none."""
