"""One conversation of a model, and what of it the next one may keep.

With activations quantized over the tokens of one run, the pieces a prompt is fed in show in the logits, and
an answer must not depend on what was asked before it. So a prompt is cut where its own messages say, it is
always fed in these pieces, and what stays in the cache for the next prompt are whole pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from runtime.conversation import Mark
from runtime.decoder import Decoder
from runtime.growing_decoder import GrowingDecoder
from runtime.prefix_cache import PrefixCache


@dataclass(frozen=True)
class _Held:
    """A piece in the cache, and the point behind it."""

    tokens: tuple[int, ...]
    mark: Mark


@dataclass(eq=False)
class Lane:
    """A conversation, for one answer at a time.

    Attributes:
        decoder: its cache holds keys and values of the same weights alone.
        prefix: what prompts begin with, and nobody said.
        saved: where the prefix may be read from, and written to; None: nowhere.
        lock: held by whoever computes an answer in one go.
        answering: answers that were begun and have not ended.
        alone: whether one of them is read piece by piece, so that nobody knows when it ends.
        prefix_tokens: of the prefix, those that the last answer had to compute.
    """

    decoder: Decoder | GrowingDecoder
    prefix: Sequence[int] = ()
    saved: PrefixCache | None = None
    lock: Lock = field(default_factory=Lock)
    answering: int = 0
    alone: bool = False
    prefix_tokens: int = 0
    _held: list[_Held] = field(default_factory=list)

    def begin(self, pieces: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Begin a conversation with a prompt in pieces; logits (V,) behind the last.

        Raises:
            PromptError: they do not fit the context.
            InferenceError: the logits are not finite.
        """
        self.hold(pieces[:-1])
        logits = self.decoder.feed(pieces[-1])
        self._held.append(_Held(tuple(pieces[-1]), self.decoder.mark()))
        return logits

    def hold(self, pieces: Sequence[Sequence[int]]) -> None:
        """Leave just these pieces in the cache; those that are in it already are not computed again."""
        kept = 0
        for piece, held in zip(pieces, self._held, strict=False):
            if held.tokens != tuple(piece) or not self.decoder.holds(held.mark):
                break
            kept += 1
        del self._held[kept:]
        self.decoder.rewind(self._held[-1].mark.length if kept else 0)
        self.prefix_tokens = 0
        for piece in pieces[kept:]:
            if not self._held and list(piece) == list(self.prefix):
                self._begin_with_prefix()
            else:
                self.decoder.feed(piece)
            self._held.append(_Held(tuple(piece), self.decoder.mark()))

    def _begin_with_prefix(self) -> None:
        if self.saved is not None and self.saved.restore(self.decoder, self.prefix):
            return
        self.decoder.feed(self.prefix)
        self.prefix_tokens = len(self.prefix)
        if self.saved is not None:
            self.saved.save(self.decoder, self.prefix)
