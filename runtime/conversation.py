"""What a decoder's cache holds: how many tokens, what may be fed or taken back, what is still as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InferenceError, PromptError


@dataclass(frozen=True, eq=False)
class Mark:
    """A point in a conversation: `length` tokens, fed as they were when it was made."""

    length: int


class Conversation:
    """The bookkeeping of one cache; no tokens and no numbers of the model.

    Attributes:
        length: tokens in the cache.
        context: most tokens it may hold.
        vocabulary: token ids are below this.
    """

    def __init__(self, context: int, vocabulary: int) -> None:
        self.length = 0
        self.context = context
        self.vocabulary = vocabulary
        self._marks: list[Mark] = []

    def checked(self, tokens: Sequence[int], length: int) -> NDArray[np.int64]:
        """Tokens (S,) to be fed behind `length` others.

        Raises:
            PromptError: there are none, one is not in the vocabulary, or they do not fit the context.
        """
        try:
            ids = np.asarray(tokens, np.int64)
        except (OverflowError, ValueError, TypeError) as error:
            raise PromptError(f"token ids must be whole numbers: {error}") from error
        if ids.size == 0 or ids.ndim != 1:
            raise PromptError("there are no tokens to feed; give at least one")
        if ids.min() < 0 or ids.max() >= self.vocabulary:
            wrong = next(int(i) for i in ids if not 0 <= i < self.vocabulary)
            raise PromptError(f"token {wrong} is not in the vocabulary of {self.vocabulary}")
        if length + ids.size > self.context:
            raise PromptError(
                f"{length + ids.size} tokens do not fit the context of {self.context}; shorten the prompt"
            )
        return ids

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens, and the marks behind them.

        Raises:
            PromptError: the conversation is shorter than that, or the length is negative.
        """
        if not 0 <= length <= self.length:
            raise PromptError(f"cannot rewind to {length} tokens: the conversation has {self.length}")
        self.length = length
        self._marks = [mark for mark in self._marks if mark.length <= length]

    def mark(self) -> Mark:
        """Remember this point, so that `holds` can tell later whether it may be rewound to."""
        mark = Mark(self.length)
        self._marks.append(mark)
        return mark

    def holds(self, mark: Mark) -> bool:
        """Whether the conversation was never rewound behind a mark since it was made.

        Equal tokens would not be enough: fed in other pieces, they leave a cache that differs by
        rounding, and an answer would depend on what was asked before.
        """
        return mark in self._marks


def refuse_not_finite(logits: NDArray[np.float32]) -> None:
    """Let only finite logits pass.

    Raises:
        InferenceError: there is a NaN or an infinity.
    """
    if not np.isfinite(logits).all():
        raise InferenceError("the model produced logits that are not finite; do not use this bundle")
