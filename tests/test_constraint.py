"""The grammar over tokens admits every answer spelt as in training, and forces nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from runtime.calls import AnswerForm, Call, Tool, call_grammar, call_text
from runtime.constraint import Constraint
from runtime.errors import BundleError, ConstraintError

CALLS = st.one_of(
    st.builds(
        lambda zone, half: Call("climate_set_temperature", {"zone": zone, "celsius": half / 2}),
        st.sampled_from(["driver", "passenger", "all"]),
        st.integers(32, 60),
    ),
    st.builds(lambda on: Call("light_set_hazard", {"on": on}), st.booleans()),
    st.builds(
        lambda title: Call("media_play", {"title": title}),
        st.text('abc 车窗"\\ ', min_size=1, max_size=8),
    ),
)
STOP = 2


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))


@pytest.fixture(scope="module")
def constraint(tiny_tools: tuple[Tool, ...], tokenizer: Tokenizer) -> Constraint:
    return Constraint(tokenizer, tokenizer.get_vocab_size(), [STOP], call_grammar(tiny_tools))


@settings(max_examples=80, deadline=None)
@given(calls=st.lists(CALLS, max_size=3))
def test_an_answer_spelt_as_in_training_is_admitted_and_only_its_own_tokens_are_forced(
    constraint: Constraint, tokenizer: Tokenizer, tiny_tools: tuple[Tool, ...], calls: list[Call]
) -> None:
    """What training fed is `encode(call_text(…))`: one spelling of the many that give the same text."""
    trained = [*tokenizer.encode(call_text(calls, tiny_tools), add_special_tokens=False).ids, STOP]
    answer = constraint.begin()
    said = answer.forced()
    while len(said) < len(trained):
        assert said == trained[: len(said)]
        assert trained[len(said)] in answer.allowed()
        said += answer.take(trained[len(said)])
    assert said == trained


@settings(max_examples=15, deadline=None)
@given(calls=st.lists(CALLS, max_size=2))
def test_what_may_come_next_is_every_token_of_the_mask(
    tiny_checkpoint: Path,
    constraint: Constraint,
    tokenizer: Tokenizer,
    tiny_tools: tuple[Tool, ...],
    calls: list[Call],
) -> None:
    text = (tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8")
    tokens = LLTokenizer(text, n_vocab=tokenizer.get_vocab_size(), eos_token=[STOP], slices=[])
    plain = LLMatcher(tokens, call_grammar(tiny_tools))
    trained = tokenizer.encode(call_text(calls, tiny_tools), add_special_tokens=False).ids
    answer = constraint.begin()
    said = answer.forced()
    while len(said) < len(trained):
        matcher = plain.deep_copy()
        matcher.consume_tokens(said)
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        may = [token for token in range(tokenizer.get_vocab_size()) if mask >> token & 1]
        assert answer.allowed().tolist() == may
        said += answer.take(trained[len(said)])


@pytest.mark.parametrize("form", ["json", "hermes"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_model_is_asked_only_where_an_answer_may_go_on_in_two_ways(
    tokenizer: Tokenizer, tiny_tools: tuple[Tool, ...], form: AnswerForm, count: int
) -> None:
    """Whether there is a call, which, on or off, and whether there is another."""
    constraint = Constraint(tokenizer, tokenizer.get_vocab_size(), [STOP], call_grammar(tiny_tools, form))
    calls = [Call("light_set_hazard", {"on": True})] * count
    trained = [
        *tokenizer.encode(call_text(calls, tiny_tools, form), add_special_tokens=False).ids,
        STOP,
    ]
    answer = constraint.begin()
    said, asked = answer.forced(), 0
    while len(said) < len(trained):
        said += answer.take(trained[len(said)])
        asked += 1
    assert said == trained
    assert asked == 1 + 3 * count


def test_a_grammar_that_nothing_satisfies_is_refused_before_anything_is_asked(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConstraintError, match="no answer satisfies the grammar"):
        Constraint(tokenizer, tokenizer.get_vocab_size(), [STOP], "start: A\nA: /[0-9]/ & /[a-z]/")
    with pytest.raises(BundleError, match="is refused"):
        Constraint(tokenizer, tokenizer.get_vocab_size(), [STOP], "start: missing")


def test_what_the_grammar_does_not_allow_is_an_error_of_one_line(
    constraint: Constraint, tokenizer: Tokenizer
) -> None:
    answer = constraint.begin()
    with pytest.raises(ConstraintError, match="the grammar cannot go on") as caught:
        answer.take(tokenizer.encode("x", add_special_tokens=False).ids[0])
    assert "\n" not in str(caught.value)


THREES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 splits a text into words; Qwen2.5 does likewise, a digit at a time."""


@pytest.mark.parametrize("form", ["json", "hermes"])
@pytest.mark.parametrize("words", [THREES, THREES.replace("{1,3}", ""), None])
def test_tokenizers_that_split_words_otherwise(
    words: str | None, form: AnswerForm, tiny_tools: tuple[Tool, ...]
) -> None:
    """Digits by threes or alone, quotes that belong to letters, line ends to brackets; or no words at all."""
    answers = [
        [Call("climate_set_temperature", {"zone": zone, "celsius": celsius})]
        + [Call("light_set_hazard", {"on": on})] * more
        for zone in ("driver", "all")
        for celsius in (16, 22.5, 30)
        for on in (True, False)
        for more in (0, 1)
    ]
    answers += [[Call("window_set_position", {"window": "all", "percent": n})] for n in (0, 7, 50, 100)]
    answers += [
        [Call("media_play", {"title": title})] for title in ("a b", '"', "\n", "车窗 2", "1234", "'s")
    ]
    answers.append([])
    texts = [call_text(calls, tiny_tools, form) for calls in answers]
    other = Tokenizer(models.BPE())
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = [pre_tokenizers.Split(Regex(words), "isolated")] if words else []
    other.pre_tokenizer = pre_tokenizers.Sequence([*split, spell])
    other.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<begin>", "<pad>", "<end>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    other.train_from_iterator([text for text in texts for _ in range(3)], trainer)
    constraint = Constraint(other, other.get_vocab_size(), [STOP], call_grammar(tiny_tools, form))
    asked = 0
    for text in texts:
        trained = [*other.encode(text, add_special_tokens=False).ids, STOP]
        answer = constraint.begin()
        said = answer.forced()
        while len(said) < len(trained):
            assert said == trained[: len(said)]
            assert trained[len(said)] in answer.allowed()
            said += answer.take(trained[len(said)])
            asked += 1
        assert said == trained
    if words:
        assert asked < sum(len(other.encode(text).ids) for text in texts) / 2
