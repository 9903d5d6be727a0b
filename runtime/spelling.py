"""Text that must come next → its tokens, spelt as training spelt whole answers.

A text has many spellings in tokens, and training fed one: the tokenizer's of the whole text. It is found
here before the text is whole. A tokenizer splits a text into words and spells each for itself, so a word's
spelling is settled as soon as whatever may follow begins another word. Where few things may follow, each is
looked at: `}}` at the end of a list is one token, and `}`, `},` are two before a further call, so that after
`}}` there is one way to go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

_MANY_TOKENS = 512
"""Where as many may follow, what follows is free text, and any character may begin it."""
_BRANCHES = 3
"""Most characters of which each is followed, to see what a text is spelt like if it goes on with it."""
_AHEAD = 2
"""How often branches are followed into branches."""

_REMEMBERED = 4096
"""Beginnings of answers, and words with what may follow, of which it is remembered what was found: calls of a
car begin alike, and what is found depends on them alone."""


class Spelling:
    """Spells what one grammar forces. For several threads at once."""

    def __init__(self, tokenizer: Tokenizer, tokens: LLTokenizer, stop_tokens: Sequence[int]) -> None:
        """Take one tokenizer in two forms: the one that training had, and the grammar's."""
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._stop_tokens = frozenset(stop_tokens)
        self._stop_token = stop_tokens[0]
        self._boundaries: dict[tuple[str, str], bool] = {}
        self._forced: dict[tuple[int, ...], tuple[int, ...]] = {}

    def forced(self, matcher: LLMatcher, said: list[int]) -> list[int]:
        """The tokens that every answer goes on with which is spelt as in training.

        Args:
            matcher: which has accepted what was said; it is left as it is.
            said: token ids from the beginning of the answer.

        Returns:
            Token ids, the last a stop token where the answer must end behind them.
        """
        known = self._forced.get(tuple(said))
        if known is None:
            known = tuple(self._find_forced(matcher, said))
            if len(self._forced) < _REMEMBERED:
                self._forced[tuple(said)] = known
        return list(known)

    def _find_forced(self, matcher: LLMatcher, said: list[int]) -> list[int]:
        common: list[int] | None = None
        text = self._tokenizer.decode(said, skip_special_tokens=False)
        for spelt in self._spellings(matcher.deep_copy(), text, _AHEAD):
            if spelt[: len(said)] != said[: len(spelt)]:
                continue  # training spells what was said in another way if it goes on so
            further = spelt[len(said) :]
            common = further if common is None else _common(common, further)
            if not common:
                return []
        return common or []

    def _spellings(self, matcher: LLMatcher, text: str, ahead: int) -> Iterator[list[int]]:
        """For each way to go on, the tokens of the whole text, as far as nothing can change them any more."""
        more = matcher.compute_ff_bytes()
        try:
            text += more.decode()
        except UnicodeDecodeError:
            yield []  # half a character is forced: the model says the other half
            return
        matcher.consume_tokens(self._tokens.tokenize_bytes(more))
        spelt = self._tokenizer.encode(text, add_special_tokens=False)
        if matcher.is_accepting() or matcher.is_stopped():
            yield [*spelt.ids, self._stop_token]
        if matcher.is_stopped():
            return
        follows = self._next_characters(matcher)
        if follows is not None and self._ends_a_word(text, spelt, follows):
            yield spelt.ids
        elif follows is None or len(follows) > _BRANCHES or not ahead:
            yield [
                token
                for token, word in zip(spelt.ids, spelt.word_ids, strict=True)
                if word != spelt.word_ids[-1]
            ]
        else:
            for character in sorted(follows):
                branch = matcher.deep_copy()
                branch.consume_tokens(self._tokens.tokenize_bytes(character.encode()))
                yield from self._spellings(branch, text + character, ahead - 1)

    def _next_characters(self, matcher: LLMatcher) -> set[str] | None:
        """The characters that may come next; None where they are many, or one is not ASCII."""
        allowed = allowed_tokens(matcher)
        if allowed.size >= _MANY_TOKENS:
            return None
        words = (token for token in allowed.tolist() if token not in self._stop_tokens)
        first = {self._tokens.decode_bytes([token])[:1] for token in words}
        return {byte.decode() for byte in first} if all(byte.isascii() for byte in first) else None

    def _ends_a_word(self, text: str, spelt: Encoding, follows: set[str]) -> bool:
        """Whether any of the characters behind a text leaves its tokens as they are, for good.

        A tokenizer decides that by the last word and the character, so each pair is looked at once.
        """
        if not spelt.ids:
            return True
        at, words = len(spelt.ids), spelt.word_ids
        last = text[spelt.offsets[words.index(words[-1])][0] :]
        for character in follows:
            settled = self._boundaries.get((last, character))
            if settled is None:
                longer = self._tokenizer.encode(text + character, add_special_tokens=False)
                settled = longer.ids[:at] == spelt.ids and longer.word_ids[at] != longer.word_ids[at - 1]
                if len(self._boundaries) < _REMEMBERED:
                    self._boundaries[last, character] = settled
            if not settled:
                return False
        return True


def allowed_tokens(matcher: LLMatcher) -> NDArray[np.int64]:
    """Which tokens may come next, in ascending order; stop tokens are among them where the answer may end."""
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    return bits.view(np.bool_).nonzero()[0]  # numpy looks for what is true many times as fast as for ones


def _common(left: list[int], right: list[int]) -> list[int]:
    count = next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
    return left[:count] if count is not None else min(left, right, key=len)
