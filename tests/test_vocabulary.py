"""The bytes of tokens and the masks are those that llguidance itself reads in tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import runtime.vocabulary as module
from pipeline.checkpoint import default_cache
from runtime.calls import Call, Tool, call_grammar, call_text
from runtime.spelling import allowed_tokens
from runtime.vocabulary import grammar_tokenizer

STOP = [2, 0]
TEXTS = ('{"name":"', "车窗 22.5", "\xa0\xad\n", "<tool_call>", "<begin>", "\ud7ff", "é", " ", "x" * 40)


def read(text: str, vocabulary: int) -> LLTokenizer:
    """What llguidance makes of a tokenizer.json."""
    return LLTokenizer(text, n_vocab=vocabulary, eos_token=STOP, slices=[])


def assert_same(tokenizer: Tokenizer, vocabulary: int, tools: tuple[Tool, ...], titles: list[str]) -> None:
    expected, taken = read(tokenizer.to_str(), vocabulary), grammar_tokenizer(tokenizer, vocabulary, STOP)
    assert (taken.vocab_size, taken.eos_tokens, taken.is_canonical) == (
        (expected.vocab_size, expected.eos_tokens, expected.is_canonical)
    )
    known = range(tokenizer.get_vocab_size())
    for of in (
        lambda tokens: [tokens.decode_bytes([number]) for number in range(vocabulary)],
        lambda tokens: [tokens.is_special_token(number) for number in known],
        lambda tokens: [tokens.dbg_tokens([number]) for number in known],
        lambda tokens: [tokens.tokenize_str(text) for text in TEXTS],
    ):
        assert of(taken) == of(expected)
    for form in ("json", "hermes"):
        grammar = call_grammar(tools, form)  # type: ignore[arg-type]
        ours, theirs = LLMatcher(taken, grammar), LLMatcher(expected, grammar)
        for title in titles:
            calls = [Call("media_play", {"title": title}), Call("light_set_hazard", {"on": True})]
            text = call_text(calls, tools, form)  # type: ignore[arg-type]
            tokens = [*tokenizer.encode(text, add_special_tokens=False).ids, STOP[0]]
            assert list(masks(ours, tokens)) == list(masks(theirs, tokens))


def masks(start: LLMatcher, tokens: list[int]) -> Iterator[tuple[list[int], bytes]]:
    """What may follow and what must, behind every token of an answer."""
    matcher = start.deep_copy()
    for token in tokens:
        yield allowed_tokens(matcher).tolist(), matcher.compute_ff_bytes()
        assert matcher.consume_token(token)
    assert matcher.is_stopped()


def test_the_tiny_tokenizer(tiny_checkpoint: Path, tiny_tools: tuple[Tool, ...]) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    assert_same(tokenizer, tokenizer.get_vocab_size(), tiny_tools, ["the Beatles", "车窗", '"', "é\\"])


@pytest.mark.slow
def test_the_tokenizer_of_the_default_config(tiny_tools: tuple[Tool, ...]) -> None:
    found = sorted(default_cache().glob("**/tokenizer.json"))
    assert found, "the default base is not in the cache: build configs/tiny.toml first"
    tokenizer = Tokenizer.from_file(str(found[0]))
    assert tokenizer.get_vocab_size() == 49_152
    assert_same(tokenizer, 49_152, tiny_tools, ["the Beatles", "车窗", "Señorita 2", '"'])


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<begin>", "<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, '[{"name":"media_play","arguments":{"title":"é"}}]'] * 3, trainer)
    return tokenizer


def test_control_tokens_and_what_looks_like_one(tiny_tools: tuple[Tool, ...]) -> None:
    """Also more logits than tokens, as of a padded embedding."""
    tokenizer = byte_level()
    looks = ["<tool call>", "<a", "a>", "[INST]", "<a> ", "<>", "<\n>", "é", "车", " ", "<é>", "a b", "|<x>|"]
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in looks])
    tokenizer.add_special_tokens(["control", "<|x|>"])
    assert_same(tokenizer, tokenizer.get_vocab_size() + 7, tiny_tools, ["a", "车"])


def test_a_token_that_is_written_otherwise_and_a_number_without_one(tiny_tools: tuple[Tool, ...]) -> None:
    written = json.loads(byte_level().to_str())
    vocabulary = written["model"]["vocab"]
    first = len(vocabulary)
    vocabulary |= {" raw": first, "\xad": first + 1, "车": first + 2, "Ġ车": first + 3}
    tokenizer = Tokenizer.from_str(json.dumps(written))
    assert_same(tokenizer, tokenizer.get_vocab_size(), tiny_tools, ["a"])
    del vocabulary[" raw"]
    vocabulary["Ġlast"] = first
    vocabulary["Ġgap"] = first + 9
    gap = Tokenizer.from_str(json.dumps(written))
    taken = grammar_tokenizer(gap, first + 10, STOP)
    assert taken.decode_bytes([first]) == b" last"
    assert taken.decode_bytes([first + 9]) == b" gap"


def byte_fallback() -> Tokenizer:
    """As SentencePiece's, in Llama 2 and Gemma."""
    pieces = ["<s>", "<pad>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    tokenizer = Tokenizer(
        models.BPE({piece: at for at, piece in enumerate(pieces)}, [("▁", "a")], byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>"])
    return tokenizer


def with_several_normalizers() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("_")])
    return tokenizer


@pytest.mark.parametrize("make", [byte_fallback, with_several_normalizers])
def test_other_kinds_are_left_to_llguidance(
    make: Callable[[], Tokenizer], tiny_tools: tuple[Tool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(module, "_Words")
    tokenizer = make()
    taken = grammar_tokenizer(tokenizer, tokenizer.get_vocab_size(), STOP)
    expected = read(tokenizer.to_str(), tokenizer.get_vocab_size())
    for number in range(taken.vocab_size):
        assert taken.decode_bytes([number]) == expected.decode_bytes([number])
    assert LLMatcher(taken, call_grammar(tiny_tools)).compute_bitmask()


def test_what_does_not_belong_together_is_refused() -> None:
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    with pytest.raises(ValueError, match=f"it has token {size - 1}, and the model {size - 1} logits"):
        grammar_tokenizer(tokenizer, size - 1, STOP)
    with pytest.raises(ValueError, match="out of range"):
        grammar_tokenizer(tokenizer, size, [2, size])
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="decoder"):
        grammar_tokenizer(tokenizer, size, STOP)
