"""A grammar over tokens: which may come next, and which must (llguidance).

What must come next is fed without asking the model, where there is one way to spell it in tokens
(`runtime.spelling`): a model steered onto another spelling than the one it was trained on answers worse.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray
from tokenizers import Tokenizer

from runtime.errors import BundleError, ConstraintError
from runtime.spelling import Spelling, allowed_tokens
from runtime.vocabulary import grammar_tokenizer


class Constraint:
    """A grammar compiled for one tokenizer; `begin` starts an answer."""

    def __init__(
        self, tokenizer: Tokenizer, vocabulary: int, stop_tokens: Sequence[int], grammar: str
    ) -> None:
        """Compile.

        Args:
            tokenizer: the one that training had.
            vocabulary: number of logits; at least the tokenizer's.
            stop_tokens: what ends an answer that the grammar allows to end.
            grammar: in llguidance's Lark dialect.

        Raises:
            BundleError: tokenizer and vocabulary do not belong together, or the grammar is refused.
            ConstraintError: nothing satisfies the grammar.
        """
        try:
            tokens = grammar_tokenizer(tokenizer, vocabulary, stop_tokens)
        except ValueError as error:
            raise BundleError(f"constrained decoding cannot use tokenizer.json: {error}") from error
        self._start = LLMatcher(tokens, grammar)
        self._stop_tokens = tuple(stop_tokens)
        self._spelling = Spelling(tokenizer, tokens, stop_tokens)
        if self._start.is_error():
            raise BundleError(f"the grammar of tools.json is refused: {self._start.get_error()}")
        first = self._start.deep_copy()
        if allowed_tokens(first).size == 0 or first.is_error():
            raise ConstraintError("no answer satisfies the grammar of tools.json; correct the functions")

    def begin(self) -> ConstrainedAnswer:
        """A new answer, nothing said yet."""
        return ConstrainedAnswer(self._start.deep_copy(), self._spelling, self._stop_tokens)


class ConstrainedAnswer:
    """How far one answer has come in the grammar."""

    def __init__(self, matcher: LLMatcher, spelling: Spelling, stop_tokens: tuple[int, ...]) -> None:
        self._matcher = matcher
        self._spelling = spelling
        self._stop_tokens = stop_tokens
        self._said: list[int] = []

    def forced(self) -> list[int]:
        """Accept and return the tokens that must come next; the last is a stop token at the end."""
        tokens = self._spelling.forced(self._matcher, self._said)
        if tokens:
            self._accept(tokens[:-1] if tokens[-1] in self._stop_tokens else tokens)
        return tokens

    def allowed(self) -> NDArray[np.int64]:
        """Which tokens may come next, ascending; stop tokens are among them where the answer may end."""
        tokens = allowed_tokens(self._matcher)
        self._refuse_error()
        return tokens

    def take(self, token: int) -> list[int]:
        """Accept a chosen token; it and the tokens it forces, ending in a stop token at the end."""
        if token in self._stop_tokens:
            return [token]
        self._accept([token])
        return [token, *self.forced()]

    def _accept(self, tokens: list[int]) -> None:
        self._matcher.consume_tokens(tokens)
        self._refuse_error()
        self._said += tokens

    def _refuse_error(self) -> None:
        if self._matcher.is_error():
            # Behind its first line is the state of the parser, and the grammar.
            reason = self._matcher.get_error().splitlines()[0]
            raise ConstraintError(f"the grammar cannot go on: {reason}")
