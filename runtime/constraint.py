"""A grammar over tokens: which may come next, and which must (llguidance)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from runtime.errors import BundleError, ConstraintError


class Constraint:
    """A grammar compiled for one tokenizer; `begin` starts an answer."""

    def __init__(self, tokenizer: str, vocabulary: int, stop_tokens: Sequence[int], grammar: str) -> None:
        """Compile.

        Args:
            tokenizer: text of tokenizer.json.
            vocabulary: number of logits; at least the tokenizer's.
            stop_tokens: what ends an answer that the grammar allows to end.
            grammar: in llguidance's Lark dialect.

        Raises:
            BundleError: tokenizer and vocabulary do not belong together, or the grammar is refused.
        """
        try:
            tokens = LLTokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(stop_tokens))
        except ValueError as error:
            raise BundleError(f"constrained decoding cannot use tokenizer.json: {error}") from error
        self._start = LLMatcher(tokens, grammar)
        self._stop_tokens = tuple(stop_tokens)
        if self._start.is_error():
            raise BundleError(f"the grammar of tools.json is refused: {self._start.get_error()}")

    def begin(self) -> ConstrainedAnswer:
        """A new answer, nothing said yet."""
        return ConstrainedAnswer(self._start.deep_copy(), self._stop_tokens)


class ConstrainedAnswer:
    """How far one answer has come in the grammar."""

    def __init__(self, matcher: LLMatcher, stop_tokens: tuple[int, ...]) -> None:
        self._matcher = matcher
        self._stop_tokens = stop_tokens

    def forced(self) -> list[int]:
        """Accept and return the tokens that must come next; a stop token when nothing else may."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        if tokens:
            self._accept(tokens)
        return [*tokens, self._stop_tokens[0]] if self._matcher.is_stopped() else tokens

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next (V,); stop tokens are among them where the answer may end."""
        mask: NDArray[np.bool_] = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) != 0
        self._refuse_error()
        return mask

    def take(self, token: int) -> list[int]:
        """Accept a chosen token; it and the tokens it forces, ending in a stop token at the end."""
        if token in self._stop_tokens:
            return [token]
        self._accept([token])
        return [token, *self.forced()]

    def _accept(self, tokens: list[int]) -> None:
        self._matcher.consume_tokens(tokens)
        self._refuse_error()

    def _refuse_error(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(f"the grammar cannot go on: {self._matcher.get_error()}")
