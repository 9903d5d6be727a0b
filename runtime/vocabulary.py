"""What each token stands for, in bytes: a tokenizer as llguidance takes it.

llguidance can read tokenizer.json by itself, and then parses it a second time and keeps a second tokenizer.
For a tokenizer that writes each byte of a text as one printable character (GPT-2's byte-level BPE, and so
Llama 3's, Qwen's and SmolLM's), the bytes are read off the names of the tokens instead, and texts are spelt
by the one tokenizer that there is. Every other kind is left to llguidance, which knows how it writes bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from llguidance import LLTokenizer
from tokenizers import Tokenizer, decoders, normalizers

_OWN = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
"""Bytes that are written as the character of the same number; the others follow each other from U+0100 on."""
_NO_BYTE = 0xFFFF
_BYTE = (
    {number: number for number in _OWN}
    | dict.fromkeys(set(range(0x100)) - _OWN, _NO_BYTE)
    | {0x100 + at: number for at, number in enumerate(sorted(set(range(0x100)) - _OWN))}
)


def grammar_tokenizer(tokenizer: Tokenizer, vocabulary: int, stop_tokens: Sequence[int]) -> LLTokenizer:
    """The same tokenizer for llguidance.

    Args:
        tokenizer: of whatever kind.
        vocabulary: number of logits; at least the tokenizer's. Logits without a token are never allowed.
        stop_tokens: end an answer; at least one.

    Raises:
        ValueError: tokenizer, vocabulary and stop tokens do not belong together, or llguidance does not know
            this kind.
    """
    stop = list(stop_tokens)
    # No slices: what they precompute of the vocabulary makes no mask of a car's grammar faster.
    if not _is_byte_level(tokenizer):
        return LLTokenizer(tokenizer.to_str(), n_vocab=vocabulary, eos_token=stop, slices=[])
    largest = max((tokenizer.get_vocab_size() - 1, *tokenizer.get_added_tokens_decoder()))
    if largest >= vocabulary:
        raise ValueError(f"it has token {largest}, and the model {vocabulary} logits")
    words = _Words(tokenizer, vocabulary, stop[0])
    taken = LLTokenizer(words, eos_token=stop, slices=[])  # type: ignore[arg-type]  # duck-typed
    words.tokens = []  # copied
    return taken


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    # Of a sequence of normalizers llguidance leaves one kind out when it spells a text.
    sequence = isinstance(tokenizer.normalizer, normalizers.Sequence)
    return isinstance(tokenizer.decoder, decoders.ByteLevel) and not sequence


class _Words:
    """What llguidance asks of a tokenizer, by the names that it asks for."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, stop_token: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = stop_token
        self.tokens = [_bytes_of(tokenizer.id_to_token(number) or "") for number in range(vocabulary)]
        self.special_token_ids: list[int] = []
        for number, token in tokenizer.get_added_tokens_decoder().items():
            # What looks like a control token is one to llguidance, as in Qwen's <tool_call>.
            if token.special or (token.content.startswith("<") and token.content.endswith(">")):
                self.special_token_ids.append(number)
                self.tokens[number] = token.content.encode()
            elif not self.tokens[number]:
                self.tokens[number] = token.content.encode()

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _bytes_of(name: str) -> bytes:
    """What a token's name stands for; nothing where it is not written in such characters."""
    try:
        return name.translate(_BYTE).encode("latin-1")
    except UnicodeEncodeError:
        return b""
