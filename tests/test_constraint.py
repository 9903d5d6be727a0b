"""The grammar over tokens admits every answer spelt as in training, and forces nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from runtime.calls import Call, Tool, call_grammar, call_text
from runtime.constraint import Constraint

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
        assert answer.allowed()[trained[len(said)]]
        said += answer.take(trained[len(said)])
    assert said == trained


def test_some_text_is_forced(
    constraint: Constraint, tokenizer: Tokenizer, tiny_tools: tuple[Tool, ...]
) -> None:
    text = call_text([Call("light_set_hazard", {"on": True})], tiny_tools)
    trained = tokenizer.encode(text, add_special_tokens=False).ids
    answer = constraint.begin(tokenizer)
    said, steps = answer.forced(), 0
    while len(said) < len(trained):
        said += answer.take(trained[len(said)])
        steps += 1
    assert steps < len(trained) - 3
