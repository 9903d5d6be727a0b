"""The grammar over tokens admits every answer spelt as in training, and forces nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

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
def constraint(tiny_checkpoint: Path, tiny_tools: tuple[Tool, ...], tokenizer: Tokenizer) -> Constraint:
    text = (tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8")
    return Constraint(text, tokenizer.get_vocab_size(), [STOP], call_grammar(tiny_tools))


@settings(max_examples=80, deadline=None)
@given(calls=st.lists(CALLS, max_size=3))
def test_an_answer_spelt_as_in_training_is_admitted_and_only_its_own_tokens_are_forced(
    constraint: Constraint, tokenizer: Tokenizer, tiny_tools: tuple[Tool, ...], calls: list[Call]
) -> None:
    """What training fed is `encode(call_text(…))`: one spelling of the many that give the same text."""
    trained = [*tokenizer.encode(call_text(calls, tiny_tools), add_special_tokens=False).ids, STOP]
    answer = constraint.begin(tokenizer)
    said = answer.forced()
    while len(said) < len(trained):
        assert said == trained[: len(said)]
        assert trained[len(said)] in answer.allowed()
        said += answer.take(trained[len(said)])
    assert said == trained


@pytest.mark.parametrize("form", ["json", "hermes"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_model_is_asked_only_where_an_answer_may_go_on_in_two_ways(
    tiny_checkpoint: Path, tokenizer: Tokenizer, tiny_tools: tuple[Tool, ...], form: AnswerForm, count: int
) -> None:
    """Whether there is a call, which, on or off, and whether there is another."""
    text = (tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8")
    constraint = Constraint(text, tokenizer.get_vocab_size(), [STOP], call_grammar(tiny_tools, form))
    calls = [Call("light_set_hazard", {"on": True})] * count
    trained = [
        *tokenizer.encode(call_text(calls, tiny_tools, form), add_special_tokens=False).ids,
        STOP,
    ]
    answer = constraint.begin(tokenizer)
    said, asked = answer.forced(), 0
    while len(said) < len(trained):
        said += answer.take(trained[len(said)])
        asked += 1
    assert said == trained
    assert asked == 1 + 3 * count


def test_a_grammar_that_nothing_satisfies_is_refused_before_anything_is_asked(
    tiny_checkpoint: Path, tokenizer: Tokenizer
) -> None:
    text = (tiny_checkpoint / "tokenizer.json").read_text(encoding="utf-8")
    with pytest.raises(ConstraintError, match="no answer satisfies the grammar"):
        Constraint(text, tokenizer.get_vocab_size(), [STOP], "start: A\nA: /[0-9]/ & /[a-z]/")
    with pytest.raises(BundleError, match="is refused"):
        Constraint(text, tokenizer.get_vocab_size(), [STOP], "start: missing")


def test_what_the_grammar_does_not_allow_is_an_error_of_one_line(
    constraint: Constraint, tokenizer: Tokenizer
) -> None:
    answer = constraint.begin(tokenizer)
    with pytest.raises(ConstraintError, match="the grammar cannot go on") as caught:
        answer.take(tokenizer.encode("x", add_special_tokens=False).ids[0])
    assert "\n" not in str(caught.value)
