"""From the grammar to records: balanced over functions, without repeats, the same bytes for the same seed."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.data.generator import (
    chinese,
    chinese_slots,
    english_cabin,
    english_infotainment,
    english_refusals,
    english_slots,
)
from pipeline.data.generator.grammar import Sentence, Template, draw
from pipeline.data.generator.slots import Slot
from pipeline.data.records import Language, Record
from pipeline.data.splits import Split, assign
from runtime.calls import Call, Tool, check_call
from runtime.errors import DataError

REFUSAL_SHARE: Final[Mapping[Split, float]] = {"train": 0.15, "validation": 0.09, "test": 0.09}
"""What fits no function, out of all. Training sees more of it than it will be tested on: what is outside
the functions is wider than what is inside, and a driver notices a call that nobody asked for."""
COMPOUND_SHARE: Final[Mapping[Split, float]] = {"train": 0.16, "validation": 0.12, "test": 0.12}
"""Several calls at once, out of all."""
THREE_CALLS_SHARE: Final = 0.2
"""Of compound utterances, how many have three calls."""
FEWEST_JOINED: Final = 2
"""Functions that a compound utterance calls at least."""
_PATIENCE = 500
"""Draws in a row that give nothing new before a family counts as exhausted."""


@dataclass(frozen=True)
class Manner:
    """How a language wraps and joins clauses.

    Attributes:
        before: what may precede an imperative.
        after: what may follow one.
        joins: what may stand between two clauses.
        comma: what stands between the first two of three.
        sentence: whether written sentences start with a capital and end with a full stop.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    joins: tuple[str, ...]
    comma: str
    sentence: bool


@dataclass(frozen=True)
class Grammar:
    """Everything there is to say in one language."""

    templates: Mapping[str, tuple[Template, ...]]
    refusals: tuple[Template, ...]
    slots: Mapping[str, Slot]
    manner: Manner


ENGLISH: Final = Grammar(
    {**english_cabin.TEMPLATES, **english_infotainment.TEMPLATES},
    english_refusals.TEMPLATES,
    english_slots.SLOTS,
    Manner(
        before=("please ", "hey, ", "now ", "okay, ", "hey car, ", "alright, ", "listen, ", "quick, "),
        after=(" please", " for me", " now", ", thanks", ", thank you"),
        joins=(" and ", " and then ", ", then ", " and also ", ", and ", " and please "),
        comma=", ",
        sentence=True,
    ),
)
CHINESE: Final = Grammar(
    chinese.TEMPLATES,
    chinese.REFUSALS,
    chinese_slots.SLOTS,
    Manner(
        before=("请", "帮我", "请帮我", "麻烦", "麻烦你", "给我", "现在"),
        after=("吧", "，谢谢", "，好吗"),
        joins=("，然后", "，再", "，顺便", "，并且", "，同时", "，还要"),
        comma="，",
        sentence=False,
    ),
)
GRAMMARS: Final[Mapping[Language, Grammar]] = {"en": ENGLISH, "zh": CHINESE}


@dataclass(frozen=True)
class Family:
    """A template with its name and the function it calls; None for a refusal."""

    name: str
    function: str | None
    template: Template


@dataclass(frozen=True)
class Clause:
    """A drawn sentence, and where it came from."""

    family: Family
    sentence: Sentence

    @property
    def call(self) -> tuple[Call, ...]:
        """The call the clause asks for; none for a refusal."""
        if self.family.function is None:
            return ()
        return (Call(self.family.function, dict(self.sentence.arguments)),)


def families(language: Language, split: Split, seed: int) -> dict[str | None, tuple[Family, ...]]:
    """The template families of a split, by function; refusals under None."""
    grammar = GRAMMARS[language]
    groups: list[tuple[str | None, tuple[Template, ...]]] = [
        *grammar.templates.items(),
        (None, grammar.refusals),
    ]
    chosen: dict[str | None, tuple[Family, ...]] = {}
    for function, templates in groups:
        group = f"{language}/{function or 'refusal'}"
        splits = assign(len(templates), seed, group)
        chosen[function] = tuple(
            Family(f"{group}/{index}", function, template)
            for index, template in enumerate(templates)
            if splits[index] == split
        )
    return chosen


def generate(
    tools: Sequence[Tool],
    *,
    split: Split,
    examples: int,
    chinese: float,
    seed: int,
    functions: Collection[str] | None = None,
) -> list[Record]:
    """Draw the records of one split.

    Args:
        tools: the functions of configs/cockpit-tools.json.
        split: whose template families and open-ended values are used.
        examples: how many records, over both languages.
        chinese: share of them in Chinese, from 0 to 1.
        seed: the same seed gives the same records, in every split.
        functions: those to speak of, each drawn equally often; None: all.

    Raises:
        DataError: the tools are not those the grammar speaks of, or it has too few sentences to say.
    """
    _check_tools(tools)
    wanted = {tool.name for tool in tools} if functions is None else set(functions)
    in_chinese = round(examples * chinese)
    counts: tuple[tuple[Language, int], ...] = (("en", examples - in_chinese), ("zh", in_chinese))
    records = [
        record
        for language, count in counts
        for record in _in_language(tools, wanted, split, count, language, seed)
    ]
    random.Random(f"{seed}/{split}/order").shuffle(records)
    return records


def _check_tools(tools: Sequence[Tool]) -> None:
    names = {tool.name for tool in tools}
    for grammar in GRAMMARS.values():
        if names != set(grammar.templates):
            odd = ", ".join(sorted(names ^ set(grammar.templates)))
            raise DataError(
                f"the generator speaks only of the functions in configs/cockpit-tools.json, and these "
                f"differ: {odd}; for other functions give data.train, data.validation and data.test files"
            )


def _in_language(
    tools: Sequence[Tool],
    functions: Collection[str],
    split: Split,
    count: int,
    language: Language,
    seed: int,
) -> Iterator[Record]:
    rng = random.Random(f"{seed}/{split}/{language}")
    refusals = round(count * REFUSAL_SHARE[split])
    spoken = {
        function: group
        for function, group in families(language, split, seed).items()
        if function is None or function in functions
    }
    drawer = _Drawer(GRAMMARS[language], spoken, rng, training=split == "train")
    compounds = round(count * COMPOUND_SHARE[split]) if drawer.joinable >= FEWEST_JOINED else 0
    numbers = itertools.count()
    for wanted, draws in (
        (refusals, drawer.refusals()),
        (compounds, drawer.compounds()),
        (count - refusals - compounds, drawer.singles()),
    ):
        for _ in range(wanted):
            drawn = next(draws, None)
            if drawn is None:
                raise DataError(
                    f"the {language} {split} grammar has nothing new to say; ask for fewer examples"
                )
            clauses, utterance = drawn
            calls = tuple(call for clause in clauses for call in clause.call)
            for call in calls:
                check_call(call, tools)
            yield Record(
                id=f"{split}-{language}-{next(numbers):05d}",
                utterance=utterance,
                calls=calls,
                lang=language,
                family="+".join(clause.family.name for clause in clauses),
                template=" + ".join(clause.sentence.masked for clause in clauses),
            )


Drawn = tuple[tuple[Clause, ...], str]
"""An utterance, after the clauses that it is made of."""


class _Drawer:
    """Draws utterances of one language and split, never one twice."""

    def __init__(
        self,
        grammar: Grammar,
        families: Mapping[str | None, tuple[Family, ...]],
        rng: random.Random,
        *,
        training: bool,
    ) -> None:
        self._grammar = grammar
        self._families = families
        self._rng = rng
        self._training = training
        self._said: set[str] = set()
        clauses = {
            function: [family for family in of_function if family.template.clause]
            for function, of_function in families.items()
            if function is not None
        }
        self._clauses = {function: group for function, group in clauses.items() if group}

    @property
    def joinable(self) -> int:
        """Functions that a clause of a compound utterance may call."""
        return len(self._clauses)

    def refusals(self) -> Iterator[Drawn]:
        """Requests that no function serves, each family in turn."""
        return self._in_turn([[(family,)] for family in self._families[None]])

    def singles(self) -> Iterator[Drawn]:
        """One call: each function in turn, and of each function each family in turn."""
        return self._in_turn(
            [
                [(family,) for family in of_function]
                for function, of_function in self._families.items()
                if function is not None
            ]
        )

    def compounds(self) -> Iterator[Drawn]:
        """Two or three imperative clauses that call different functions."""
        functions = list(self._clauses)
        while True:
            clauses = 3 if self._rng.random() < THREE_CALLS_SHARE else FEWEST_JOINED
            chosen = self._rng.sample(functions, min(clauses, len(functions)))
            drawn = self._unsaid(tuple(self._rng.choice(self._clauses[function]) for function in chosen))
            if drawn is not None:
                yield drawn

    def _in_turn(self, groups: Sequence[Sequence[tuple[Family, ...]]]) -> Iterator[Drawn]:
        """One utterance of each group in turn; a group's members take turns too, until they have said all."""
        left = [deque(group) for group in groups]
        while left := [group for group in left if group]:
            for group in left:
                while group:
                    drawn = self._unsaid(group[0])
                    if drawn is not None:
                        group.rotate(-1)
                        yield drawn
                        break
                    group.popleft()

    def _unsaid(self, families: tuple[Family, ...]) -> Drawn | None:
        """An utterance not drawn before, a clause from each family; None when there seems to be none left."""
        for _ in range(_PATIENCE):
            clauses = tuple(
                Clause(family, draw(family.template, self._grammar.slots, self._rng, training=self._training))
                for family in families
            )
            utterance = self._utter(clauses)
            if utterance.casefold() not in self._said:
                self._said.add(utterance.casefold())
                return clauses, utterance
        return None

    def _utter(self, clauses: tuple[Clause, ...]) -> str:
        """The clauses joined, politely or not, as written or as transcribed speech."""
        manner, rng = self._grammar.manner, self._rng
        words = [clause.sentence.text for clause in clauses]
        text = words[0]
        for index, more in enumerate(words[1:], start=1):
            text += (manner.comma if index < len(words) - 1 else rng.choice(manner.joins)) + more
        if all(clause.family.template.clause for clause in clauses):
            if rng.random() < 0.35:
                text = rng.choice(manner.before) + text
            if rng.random() < 0.12:
                text += rng.choice(manner.after)
        if manner.sentence and rng.random() < 0.5:
            text = text[0].upper() + text[1:]
            text += "" if text[-1] in ".?!" or rng.random() < 0.5 else "."
        return text
