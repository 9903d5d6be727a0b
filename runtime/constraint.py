"""A grammar over tokens: which may come next, and which must (llguidance).

What must come next is known as bytes. They are fed without asking the model only where there is one way
to spell them in tokens: `}}` is one token when the answer ends there and part of others when a further
call follows, and a model steered onto the wrong one answers worse. So the bytes are encoded behind all
that was said, as training encoded whole answers, and the last word is left to the model: what follows it
may still change its spelling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

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
            tokens = LLTokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(stop_tokens), slices=[])
        except ValueError as error:
            raise BundleError(f"constrained decoding cannot use tokenizer.json: {error}") from error
        self._start = LLMatcher(tokens, grammar)
        self._stop_tokens = tuple(stop_tokens)
        if self._start.is_error():
            raise BundleError(f"the grammar of tools.json is refused: {self._start.get_error()}")

    def begin(self, tokenizer: Tokenizer) -> ConstrainedAnswer:
        """A new answer, nothing said yet; `tokenizer` is of the text that the constraint was compiled for."""
        return ConstrainedAnswer(self._start.deep_copy(), tokenizer, self._stop_tokens)


class ConstrainedAnswer:
    """How far one answer has come in the grammar."""

    def __init__(self, matcher: LLMatcher, tokenizer: Tokenizer, stop_tokens: tuple[int, ...]) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._stop_tokens = stop_tokens
        self._said: list[int] = []

    def forced(self) -> list[int]:
        """Accept and return the tokens that must come next; a stop token when nothing else may."""
        if self._matcher.is_stopped():
            return [self._stop_tokens[0]]
        tokens = self._spelt(self._matcher.compute_ff_bytes())
        if tokens:
            self._accept(tokens)
        return tokens

    def _spelt(self, more: bytes) -> list[int]:
        """The tokens of `more` behind what was said, as far as nothing that follows can change them."""
        try:
            text = self._tokenizer.decode(self._said, skip_special_tokens=False) + more.decode()
        except UnicodeDecodeError:
            return []  # half a character is forced: the model says the other half
        whole = self._tokenizer.encode(text, add_special_tokens=False)
        said = len(self._said)
        if not more or whole.ids[:said] != self._said:
            return []
        last = whole.word_ids[-1]
        return [
            token for token, word in zip(whole.ids[said:], whole.word_ids[said:], strict=True) if word != last
        ]

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
        self._said += tokens

    def _refuse_error(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(f"the grammar cannot go on: {self._matcher.get_error()}")
