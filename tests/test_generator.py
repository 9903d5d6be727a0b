import itertools
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.data.generator import chinese_slots, english_slots
from pipeline.data.generator.generate import GRAMMARS, families, generate
from pipeline.data.generator.grammar import Choice, Sequence, SlotNode, Template, draw, parse, say, tidy
from pipeline.data.generator.slots import Closed, Digits, Numeric, Open
from pipeline.data.records import Language, Record, write_records
from pipeline.data.splits import SPLITS, Split, check_leakage
from runtime.calls import Call, Tool, check_call, load_tools, parse_tools
from runtime.errors import DataError

SIZES: tuple[tuple[Split, int], ...] = (("train", 2400), ("validation", 200), ("test", 400))
NUMBERS = {
    name for grammar in GRAMMARS.values() for name, slot in grammar.slots.items() if isinstance(slot, Numeric)
}
TOOLS = load_tools(Path(__file__).parents[1] / "configs" / "cockpit-tools.json")


def _records(split: Split, examples: int = 600, seed: int = 0) -> list[Record]:
    return generate(TOOLS, split=split, examples=examples, chinese=0.3, seed=seed)


def _forms(sequence: Sequence) -> list[str]:
    """Every slot-masked form of a pattern."""
    parts: list[list[str]] = []
    for part in sequence:
        if isinstance(part, str):
            parts.append([part])
        elif isinstance(part, SlotNode):
            parts.append([f"{{{part.slot}}}"])
        else:
            parts.append([form for alternative in part.alternatives for form in _forms(alternative)])
    return ["".join(chosen) for chosen in itertools.product(*parts)]


# patterns


def test_brackets_alternate_and_leave_out() -> None:
    assert parse("(a|b [c])") == (Choice((("a",), ("b ", Choice(((), ("c",)))))),)
    assert set(map(tidy, _forms(parse("(set|turn [it]) to {n:count} [please|now]")))) == {
        "set to {count}", "set to {count} please", "set to {count} now",
        "turn to {count}", "turn to {count} please", "turn to {count} now",
        "turn it to {count}", "turn it to {count} please", "turn it to {count} now",
    }  # fmt: skip


@pytest.mark.parametrize("pattern", ["(a", "a)", "[a)", "a|b", "{A}", "{", "a}"])
def test_a_broken_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|bracket|unmatched|missing"):
        parse(pattern)


def test_a_drawn_sentence_carries_mask_and_arguments() -> None:
    sentence = draw(
        say("go to {place} [,now]?", fast=True), {"place": Open(("x",))}, random.Random(0), training=True
    )
    assert sentence.arguments == {"place": "x", "fast": True}
    assert sentence.text in {"go to x?", "go to x,now?"}
    assert sentence.masked == sentence.text.replace("x", "{place}")


# slots


def test_open_values_of_training_are_never_held_out() -> None:
    slot, rng = Open(tuple(map(str, range(40)))), random.Random(0)
    drawn = {
        training: {slot.draw(rng, training=training)[0] for _ in range(2000)} for training in (True, False)
    }
    assert not drawn[True] & drawn[False]
    assert len(drawn[True]) == 28
    assert len(drawn[False]) == 12


def test_numbers_are_exact_and_said_both_ways() -> None:
    slot, rng = Numeric((321, 225, 200), english_slots.spell, unit=0.1), random.Random(0)
    assert {slot.draw(rng, training=True) for _ in range(200)} == {
        ("32.1", 32.1), ("22.5", 22.5), ("20", 20),
        ("thirty two point one", 32.1), ("twenty two point five", 22.5), ("twenty", 20),
    }  # fmt: skip


def test_a_telephone_number_loses_its_gap() -> None:
    rng = random.Random(0)
    for words, digits in (Digits((7,)).draw(rng, training=True) for _ in range(20)):
        assert isinstance(digits, str)
        assert words.replace(" ", "") == digits
        assert len(digits) == 7


@pytest.mark.parametrize(
    ("value", "english", "chinese"),
    [
        (0, "zero", "零"),
        (10, "ten", "十"),
        (15, "fifteen", "十五"),
        (22.5, "twenty two point five", "二十二点五"),
        (100, "one hundred", "一百"),
        (105, "one hundred five", "一百零五"),
        (110, "one hundred ten", "一百一十"),
        (147, "one hundred forty seven", "一百四十七"),
    ],
)
def test_numbers_in_words(value: float, english: str, chinese: str) -> None:
    assert english_slots.spell(value) == english
    assert chinese_slots.spell(value) == chinese


# the grammar as it is written


def test_no_two_families_have_a_form_in_common() -> None:
    owners: dict[str, set[str]] = defaultdict(set)
    for name, _, template in _templates():
        for form in _forms(template.pattern):
            owners[tidy(form).casefold()].add(name)
    assert {form: names for form, names in owners.items() if len(names) > 1} == {}


def test_one_sentence_has_one_meaning_and_one_family() -> None:
    """Drawn widely, the same words never come from two families or with two calls."""
    origins: dict[str, set[str]] = defaultdict(set)
    for training in (True, False):
        rng = random.Random(1)
        for name, function, template in _templates():
            for _ in range(100):
                sentence = draw(template, GRAMMARS[_language(name)].slots, rng, training=training)
                arguments = json.dumps(sentence.arguments, sort_keys=True) if function else "none"
                origins[sentence.text.casefold().rstrip("?")].add(f"{name} {arguments}")
    assert {text: names for text, names in origins.items() if len(names) > 1} == {}


def test_a_temperature_without_its_unit_can_be_nothing_else() -> None:
    """It stands beside a zone or the word for it, and no other number does."""
    bare = Counter[Language]()
    for name, function, template in _templates():
        for form in _forms(template.pattern):
            named = any(word in form for word in ("{zone", "temperature", "温度"))
            if function != "climate_set_temperature":
                assert not (named and any(f"{{{number}}}" in form for number in NUMBERS)), (name, form)
            elif not re.search("degrees|} celsius|度$", form):
                assert named, (name, form)
                bare[_language(name)] += 1
    assert min(bare["en"], bare["zh"]) > 10


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("language", "unit"), [("en", "degrees|celsius"), ("zh", "度")])
def test_training_has_temperatures_without_their_unit(language: Language, unit: str, seed: int) -> None:
    said = [
        re.search(unit, record.utterance.replace("温度", "")) is not None
        for record in generate(
            TOOLS,
            split="train",
            examples=60,
            chinese=float(language == "zh"),
            seed=seed,
            functions=["climate_set_temperature"],
        )
        if record.calls
    ]
    assert min(said.count(True), said.count(False)) >= len(said) / 10


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("set the driver side to 22", {"zone": "driver", "celsius": 22}),
        ("make it 21 on the passenger side", {"zone": "passenger", "celsius": 21}),
        ("把主驾调到22", {"zone": "driver", "celsius": 22}),
    ],
)
def test_what_drivers_say_is_in_the_grammar(text: str, call: dict[str, object]) -> None:
    """The sentence that the README opens with, and its like."""
    language: Language = "en" if text.isascii() else "zh"
    rng = random.Random(0)
    grammar = GRAMMARS[language]
    drawn = (
        draw(template, grammar.slots, rng, training=True)
        for _ in range(50_000)
        for template in grammar.templates["climate_set_temperature"]
    )
    assert next(sentence.arguments for sentence in drawn if sentence.text == text) == call


def _templates() -> Iterator[tuple[str, str | None, Template]]:
    """Every family of both languages: its name, its function and its template."""
    for language, grammar in GRAMMARS.items():
        for function, templates in [*grammar.templates.items(), (None, grammar.refusals)]:
            for index, template in enumerate(templates):
                yield f"{language}/{function}/{index}", function, template


def _language(name: str) -> Language:
    return "zh" if name.startswith("zh") else "en"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_slot_is_used_and_every_value_allowed(language: Language) -> None:
    grammar = GRAMMARS[language]
    used = set()
    for function, templates in grammar.templates.items():
        for template in templates:
            nodes = _nodes(template.pattern)
            used |= {node.slot for node in nodes}
            for node in nodes:
                slot = grammar.slots[node.slot]
                for value in slot.words if isinstance(slot, Closed) else ():
                    others = draw(template, grammar.slots, random.Random(0), training=True).arguments
                    check_call(Call(function, {**others, node.argument: value}), TOOLS)
    used |= {node.slot for template in grammar.refusals for node in _nodes(template.pattern)}
    assert used == set(grammar.slots)


def _nodes(sequence: Sequence) -> list[SlotNode]:
    return [
        node
        for part in sequence
        for node in (
            [part]
            if isinstance(part, SlotNode)
            else [inner for alternative in part.alternatives for inner in _nodes(alternative)]
            if isinstance(part, Choice)
            else []
        )
    ]


def test_every_enumerated_value_can_be_said() -> None:
    said = defaultdict(set)
    for record in generate(TOOLS, split="train", examples=5000, chinese=0.5, seed=0):
        for call in record.calls:
            for name, value in call.arguments.items():
                said[record.lang, call.name, name].add(value if isinstance(value, str | bool) else None)
    for language in ("en", "zh"):
        for tool in TOOLS:
            for name, schema in _properties(tool).items():
                if "enum" in schema:
                    assert said[language, tool.name, name] == set(schema["enum"]), (language, tool.name, name)
                elif schema["type"] == "boolean":
                    assert said[language, tool.name, name] == {True, False}


def _properties(tool: Tool) -> dict[str, dict[str, list[str]]]:
    return tool.parameters.get("properties", {})  # type: ignore[return-value]


# what is generated


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_records(_records("train", seed=seed), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


@pytest.mark.parametrize("seed", range(5))
def test_splits_share_nothing_and_have_every_function(seed: int) -> None:
    splits = {split: _records(split, examples, seed) for split, examples in SIZES}
    for split in SPLITS[1:]:
        check_leakage(splits["train"], splits[split], split)
    for records in splits.values():
        for language in ("en", "zh"):
            called = {call.name for record in records if record.lang == language for call in record.calls}
            assert called == {tool.name for tool in TOOLS}


@pytest.mark.parametrize(("split", "refusals", "compounds"), [("train", 150, 160), ("test", 90, 120)])
def test_shares_are_what_was_asked_for(split: Split, refusals: int, compounds: int) -> None:
    records = _records(split, 1000)
    assert len(records) == 1000
    assert len({record.utterance.casefold() for record in records}) == 1000
    assert len({record.id for record in records}) == 1000
    assert Counter(record.lang for record in records) == {"en": 700, "zh": 300}
    sizes = Counter(len(record.calls) for record in records)
    assert sizes[0] == pytest.approx(refusals, abs=2)
    assert sizes[2] + sizes[3] == pytest.approx(compounds, abs=2)
    assert sizes[3] > 5
    singles = Counter(r.calls[0].name for r in records if len(r.calls) == 1 and r.lang == "en")
    assert max(singles.values()) - min(singles.values()) <= 1


def test_a_family_belongs_to_one_split() -> None:
    names = [
        {family.name for of_function in families("en", split, 0).values() for family in of_function}
        for split in SPLITS
    ]
    everything = sum(len(templates) for templates in GRAMMARS["en"].templates.values())
    assert len(set.union(*names)) == sum(map(len, names)) == everything + len(GRAMMARS["en"].refusals)


def test_other_tools_are_refused_with_the_way_out() -> None:
    (tool,) = parse_tools('[{"name": "honk", "description": "", "parameters": {"type": "object"}}]')
    with pytest.raises(DataError, match=r"data\.train"):
        generate([*TOOLS, tool], split="train", examples=1, chinese=0.0, seed=0)


def test_an_exhausted_grammar_says_so() -> None:
    with pytest.raises(DataError, match="nothing new to say"):
        generate(TOOLS, split="validation", examples=200_000, chinese=0.0, seed=0)
