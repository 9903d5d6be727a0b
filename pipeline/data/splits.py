"""Splits by template family, and the check that nothing of training is in what is tested."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.data.records import Record
from runtime.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_VALIDATION_SHARE = 0.1
_TEST_SHARE = 0.2


def assign(families: int, seed: int, group: str) -> tuple[Split, ...]:
    """The split of each of a group's families: a tenth for validation, a fifth for test, at least one each.

    A group is all families of one function in one language, so that every function is in every split.
    A draw decides, not the author of the templates.

    Raises:
        ValueError: there are fewer than three families.
    """
    if families < 3:
        raise ValueError(f"{group} has {families} template families; three splits need at least three")
    validation = max(1, round(families * _VALIDATION_SHARE))
    test = max(1, round(families * _TEST_SHARE))
    splits: list[Split] = ["train"] * (families - validation - test)
    splits += ["validation"] * validation
    splits += ["test"] * test
    random.Random(f"{seed}/{group}").shuffle(splits)
    return tuple(splits)


def hold_out(records: Sequence[Record], count: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Divide collected records by sentence form: what is left to train on, and about `count` held out.

    Records of one form, their argument values masked, are on one side, so that what is held out asks for
    sentences that training does not have.

    Raises:
        DataError: fewer than half of the records would be left, or every form has more than `count`.
    """
    if 2 * count > len(records):
        raise DataError(
            f"{count} validation records cannot be held out of {len(records)}; "
            "lower data.validation_examples, or name a file in data.validation"
        )
    forms: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        forms.setdefault(masked(record), []).append(index)
    drawn = list(forms.values())
    random.Random(f"{seed}/hold out").shuffle(drawn)
    held: set[int] = set()
    for form in drawn:
        # A form that is too common to be held out would leave nothing of its kind to learn from.
        if len(held) + len(form) <= count:
            held.update(form)
    if not held:
        raise DataError(
            f"no sentence form of the {len(records)} training records is rare enough to hold {count} out; "
            "name a file in data.validation"
        )
    sides: tuple[list[Record], list[Record]] = ([], [])
    for index, record in enumerate(records):
        sides[index in held].append(record)
    return sides


@dataclass(frozen=True)
class Leakage:
    """What a held-out set shares with training; all zero when it is clean.

    Attributes:
        identical_utterances: held-out utterances that training has too, whatever their case and spacing.
        identical_families: template families in both.
        identical_templates: share (0 to 1) of held-out utterances whose slot-masked form training has too.
    """

    identical_utterances: int
    identical_families: int
    identical_templates: float


def leakage(train: Sequence[Record], held_out: Sequence[Record]) -> Leakage:
    """Measure what a held-out set shares with training."""
    utterances = {_folded(record.utterance) for record in train}
    templates = {masked(record) for record in train}
    shared = [record for record in held_out if masked(record) in templates]
    return Leakage(
        identical_utterances=sum(_folded(record.utterance) in utterances for record in held_out),
        identical_families=len(_families(train) & _families(held_out)),
        identical_templates=len(shared) / len(held_out) if held_out else 0.0,
    )


def check_leakage(train: Sequence[Record], held_out: Sequence[Record], split: Split) -> Leakage:
    """Measure, and refuse a held-out set that shares anything with training.

    Raises:
        DataError: an utterance, a family or a template is in both.
    """
    found = leakage(train, held_out)
    if found != Leakage(0, 0, 0.0):
        raise DataError(
            f"the {split} split shares {found.identical_utterances} utterances, {found.identical_families} "
            f"template families and {found.identical_templates:.1%} of its templates with training; "
            "divide the data by template family"
        )
    return found


def masked(record: Record) -> str:
    """The utterance with argument values masked: the generator's own, else every value found in the words."""
    if record.template is not None:
        return record.template
    text = _folded(record.utterance)
    values = {
        _folded(value): name
        for call in record.calls
        for name, value in call.arguments.items()
        if isinstance(value, str) and value.strip()
    }
    for value in sorted(values, key=lambda value: (-len(value), value)):
        text = text.replace(value, f"{{{values[value]}}}")
    return re.sub(r"\d+(\.\d+)?", "#", text)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".!?。！？")


def _families(records: Iterable[Record]) -> set[str]:
    """Single template families; a compound utterance has several, joined by "+"."""
    return {family for record in records if record.family for family in record.family.split("+")}
