"""What fills a slot: words, and the argument value they mean.

Closed slots (zones, modes, colours) are the same in every split, because their values are the schema's.
Open slots (songs, places, names, messages) are divided: what training saw is never tested, so that a
model is rewarded for copying what was said and not for recalling a list.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

Value = str | int | float | bool | None
"""What an argument can be; None in requests that no function serves."""


class Slot(Protocol):
    """Anything words and a value can be drawn from."""

    def draw(self, rng: random.Random, *, training: bool) -> tuple[str, Value]:
        """The words said, and the argument value they mean."""


@dataclass(frozen=True)
class Closed:
    """Each value with the ways it is said; values are drawn evenly, then the words."""

    words: Mapping[Value, tuple[str, ...]]

    def draw(self, rng: random.Random, *, training: bool) -> tuple[str, Value]:
        """The words said, and the value they mean."""
        value = rng.choice(tuple(self.words))
        return rng.choice(self.words[value]), value


@dataclass(frozen=True)
class Open:
    """Free text that is its own value. Training has seven of every ten entries, the other splits three."""

    entries: tuple[str, ...]

    def draw(self, rng: random.Random, *, training: bool) -> tuple[str, Value]:
        """An entry, as the words and as the value."""
        kept = [entry for index, entry in enumerate(self.entries) if (index % 10 < 7) == training]
        entry = rng.choice(kept)
        return entry, entry


@dataclass(frozen=True)
class Numeric:
    """A number from a range, said in digits or in words.

    Attributes:
        ticks: the values as integers, in units of `unit`, so that no rounding error reaches a value.
        unit: what one tick is worth: 1, 0.5 or 0.1.
        spell: writes a value in words.
    """

    ticks: tuple[int, ...]
    spell: Callable[[float], str]
    unit: float = 1.0

    def draw(self, rng: random.Random, *, training: bool) -> tuple[str, Value]:
        """The number in digits (two times of three) or in words, and its value."""
        exact = round(rng.choice(self.ticks) * self.unit, 1)
        value = int(exact) if exact.is_integer() else exact
        return (self.spell(value) if rng.random() < 1 / 3 else str(value)), value


@dataclass(frozen=True)
class Digits:
    """A telephone number: said in one run or in two groups, meant without the gap."""

    lengths: tuple[int, ...]

    def draw(self, rng: random.Random, *, training: bool) -> tuple[str, Value]:
        """The number as said, and its digits."""
        digits = "".join(str(rng.randrange(10)) for _ in range(rng.choice(self.lengths)))
        return (f"{digits[:3]} {digits[3:]}" if rng.random() < 0.5 else digits), digits


def listed(entries: str) -> tuple[str, ...]:
    """The entries of a long list that is written with | between them."""
    return tuple(entries.split("|"))
