"""Whether one task leaves a trace in another: a loaded bundle asked for its tasks in a random order.

Adapters are inputs of one graph, and each has a cache of its own. What a task says must therefore be the
same to the last bit whatever was asked before, and so must what the bare base says after everything.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import runtime
from pipeline.data.records import read_records
from pipeline.stage import Progress
from runtime.errors import DataError
from runtime.report import to_json

if TYPE_CHECKING:
    from runtime import Assistant

SEED = 0
ROUNDS = 6
"""How often each task and the bare base are asked again, in an order drawn anew each time."""
NEW_TOKENS = 4
"""Of each answer: what is drawn from a cache, and fed to it."""


@dataclass(frozen=True)
class Switching:
    """A bundle's tasks and its bare base, asked again and again in a random order."""

    tasks: int
    turns: int
    """Answers that were compared with the first of the same task."""
    different: int
    """Of those, how many were not the same: the tokens, and the logits to the last bit."""
    first_difference: str
    """Which task, and what was asked before; empty when there is none."""


def measure_switching(
    bundle: Path, tests: Mapping[str, Path], threads: int, out: Path, progress: Progress
) -> Mapping[str, Any]:
    """Write `switching.json`.

    Args:
        bundle: with several tasks.
        tests: task → a file of its test records, of which the first is asked.
        threads: of one operator.
        out: where the measurement goes.
        progress: told of every answer.

    Raises:
        BundleError: the bundle is damaged.
        DataError: a file holds no record.
    """
    utterances = []
    for file in tests.values():
        records = read_records(file)
        if not records:
            raise DataError(f"{file} holds no test record, so there is nothing to ask")
        utterances.append(records[0].utterance)
    found = switching(runtime.load(bundle, threads=threads), utterances, progress)
    (out / "switching.json").write_text(to_json(found), encoding="utf-8")
    return {"turns": found.turns, "different": found.different}


def switching(assistant: Assistant, utterances: Sequence[str], progress: Progress) -> Switching:
    """Ask every task and the bare base once, and then again in random orders; the bare base ends it.

    Args:
        assistant: a bundle with at least one task.
        utterances: each is asked of each.
        progress: told of every answer.
    """
    names = (None, *assistant.tasks)
    order = _order(names)
    total = len(names) + len(order)
    expected = {}
    for done, name in enumerate(names, start=1):
        expected[name] = _said(assistant, name, utterances)
        progress("switching tasks", done, total)
    different, first = 0, ""
    before: str | None = names[-1]
    for done, name in enumerate(order, start=len(names) + 1):
        if _said(assistant, name, utterances) != expected[name]:
            different += 1
            first = first or f"{_called(name)} after {_called(before)}"
        before = name
        progress("switching tasks", done, total)
    return Switching(len(assistant.tasks), len(order), different, first)


def _order(names: Sequence[str | None]) -> list[str | None]:
    """Every name in each round, none twice in a row, and the bare base in the end."""
    drawn = random.Random(SEED)
    shuffled = [name for _ in range(ROUNDS) for name in drawn.sample(names, len(names))]
    return [name for name, _ in itertools.groupby([*shuffled, None])]


def _said(assistant: Assistant, task: str | None, utterances: Sequence[str]) -> list[bytes]:
    """The tokens of the answers, and the logits behind each, as they lie in memory."""
    found = []
    for utterance in utterances:
        assistant.use(task)
        answer = assistant.answer(utterance, NEW_TOKENS, constrained=False)
        found.append(repr(answer.tokens).encode())
        found.append(assistant.decoder.feed(assistant.prompt(utterance)[-1:]).tobytes())
    return found


def _called(task: str | None) -> str:
    return "the bare base" if task is None else f'"{task}"'
