"""Template patterns: how one way of saying something is written down, and how a sentence is drawn from it.

A pattern is a sentence with three constructs, which nest::

    (set|turn|put)      exactly one of the alternatives
    [please|kindly]     one of the alternatives, or nothing
    {zone:side}         a word from the slot `side`, which fixes the call's argument `zone`
    {celsius}           short for {celsius:celsius}

A drawn sentence carries its slot-masked form too, which is what tells one template from another.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.data.generator.slots import Slot
from runtime.schema import JSONValue

_TOKEN = re.compile(r"[()\[\]|]|\{[a-z_]+(?::[a-z_]+)?\}|[^()\[\]|{}]+")


@dataclass(frozen=True)
class SlotNode:
    """A place to be filled, and the argument that the filling decides."""

    argument: str
    slot: str


@dataclass(frozen=True)
class Choice:
    """Exactly one of the alternatives."""

    alternatives: tuple[Sequence, ...]


Sequence = tuple["str | SlotNode | Choice", ...]
"""What stands side by side in a pattern."""


@dataclass(frozen=True)
class Template:
    """One way of saying what one call does.

    Attributes:
        pattern: the parsed sentence.
        clause: whether it is an imperative: only those follow "please" and are joined by "and".
        fixed: arguments that the wording itself decides.
    """

    pattern: Sequence
    clause: bool
    fixed: Mapping[str, JSONValue]


@dataclass(frozen=True)
class Sentence:
    """What was drawn: the words, the words with `{slot}` for each filling, and the arguments."""

    text: str
    masked: str
    arguments: Mapping[str, JSONValue]


def order(pattern: str, **fixed: JSONValue) -> Template:
    """A template that is an imperative clause; keywords are the arguments its wording decides."""
    return Template(parse(pattern), clause=True, fixed=fixed)


def say(pattern: str, **fixed: JSONValue) -> Template:
    """A template of any other form: statement, question, fragment."""
    return Template(parse(pattern), clause=False, fixed=fixed)


def parse(pattern: str) -> Sequence:
    """Read a pattern.

    Raises:
        ValueError: brackets do not match, or a character has no place in a pattern.
    """
    tokens = _TOKEN.findall(pattern)
    if "".join(tokens) != pattern:
        raise ValueError(f"not a pattern: {pattern!r}")
    (sequence,), rest = _alternatives(tokens, closing="")
    if rest:
        raise ValueError(f"unmatched bracket in {pattern!r}")
    return sequence


def _alternatives(tokens: list[str], closing: str) -> tuple[tuple[Sequence, ...], list[str]]:
    """The alternatives up to `closing` (the end of the pattern when it is empty), and what follows."""
    found: list[Sequence] = []
    current: list[str | SlotNode | Choice] = []
    while tokens:
        head, *tokens = tokens
        if head in ("(", "["):
            inner, tokens = _alternatives(tokens, ")" if head == "(" else "]")
            current.append(Choice(inner if head == "(" else ((), *inner)))
        elif head in (")", "]"):
            if head != closing:
                raise ValueError(f"unmatched {head!r}")
            return (*found, tuple(current)), tokens
        elif head == "|":
            if not closing:
                raise ValueError("alternatives stand in brackets")
            found.append(tuple(current))
            current = []
        elif head.startswith("{"):
            argument, _, slot = head[1:-1].partition(":")
            current.append(SlotNode(argument, slot or argument))
        else:
            current.append(head)
    if closing:
        raise ValueError(f"missing {closing!r}")
    return (*found, tuple(current)), []


def draw(template: Template, slots: Mapping[str, Slot], rng: random.Random, *, training: bool) -> Sentence:
    """Draw one sentence; `training` chooses which part of the open-ended slots is used."""
    text, masked, arguments = _draw(template.pattern, slots, rng, training)
    return Sentence(tidy(text), tidy(masked), {**template.fixed, **arguments})


def _draw(
    sequence: Sequence, slots: Mapping[str, Slot], rng: random.Random, training: bool
) -> tuple[str, str, dict[str, JSONValue]]:
    text, masked, arguments = "", "", dict[str, JSONValue]()
    for part in sequence:
        if isinstance(part, str):
            text, masked = text + part, masked + part
        elif isinstance(part, SlotNode):
            words, value = slots[part.slot].draw(rng, training=training)
            text, masked = text + words, masked + "{" + part.slot + "}"
            arguments[part.argument] = value
        else:
            inner = _draw(rng.choice(part.alternatives), slots, rng, training)
            text, masked = text + inner[0], masked + inner[1]
            arguments.update(inner[2])
    return text, masked, arguments


def tidy(text: str) -> str:
    """Single spaces, and none before punctuation: what an optional part left behind is gone."""
    return re.sub(r" +([,.?!])", r"\1", " ".join(text.split()))
