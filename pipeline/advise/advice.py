"""What `cockpit advise` found, as a record in a run's folder. Light, so that a report that shows it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.claims.finding import Finding
from runtime.errors import DataError
from runtime.manifest import Precision
from runtime.report import Estimate, Machine, Report, from_json

FILE = "advice.json"
"""Beside the reports of a run's tasks."""
SCHEMA_VERSION = 1

Choice = Literal["merged", "switchable", "undecided"]
"""`undecided`: disk and memory speak for different forms."""


@dataclass(frozen=True)
class TaskAdapter:
    """The random adapter of one task.

    Attributes:
        name: of the task.
        rank: largest of one weight's update.
        parameters: numbers in all factors.
        file_bytes: of the adapter's file and its record.
    """

    name: str
    rank: int
    parameters: int
    file_bytes: int


@dataclass(frozen=True)
class Row:
    """One figure of both forms.

    Attributes:
        english: what it is.
        chinese: the same.
        unit: bytes, or milliseconds.
        merged: None where the form has no such figure.
        switchable: the same figure of the other form.
        ratio: switchable over merged, where both have one.
        guide: what the reference guide says of it, and whether that holds here.
    """

    english: str
    chinese: str
    unit: Literal["bytes", "ms"]
    merged: float | None
    switchable: float
    ratio: Estimate | None
    guide: Finding | None


@dataclass(frozen=True)
class Bytes:
    """Of both forms."""

    merged: int
    switchable: int


@dataclass(frozen=True)
class Setting:
    """What was measured, and where.

    Attributes:
        name: of the config.
        machine: this one.
        precision: of the weights.
        context: of each conversation, in tokens.
        threads: of each process.
        prompt_tokens: of the prompt that was timed.
        new_tokens: decoded behind it.
        base: digest of the base checkpoint.
    """

    name: str
    machine: Machine
    precision: Precision
    context: int
    threads: int
    prompt_tokens: int
    new_tokens: int
    base: str


@dataclass(frozen=True)
class Advice:
    """Everything that `cockpit advise` found.

    Attributes:
        tasks: their adapters; the largest is the one that is timed.
        rows: figures, in the order of a table.
        disk: of all tasks' bundles.
        memory: resident, all tasks ready.
        update: what one task's update ships: a bundle, or the largest adapter.
        token_ratio: time of a token with an adapter over merged.
        first_ratio: time to the first token, likewise.
        choice: the form that takes less disk and less memory for these tasks.
        disk_from: tasks from which the switchable form takes less disk; None: at no number.
        memory_from: the same of memory; None: at no number, or one task alone cannot tell.
    """

    schema_version: int
    setting: Setting
    tasks: tuple[TaskAdapter, ...]
    rows: tuple[Row, ...]
    disk: Bytes
    memory: Bytes
    update: Bytes
    token_ratio: Estimate
    first_ratio: Estimate
    choice: Choice
    disk_from: int | None
    memory_from: int | None


def advice_of(run: Path, report: Report) -> Advice | None:
    """The advice.json of a run, when it is of the task that `report` judges.

    None when there is none, when it is of another base, precision or adapter, and when it cannot be read: it
    can be made again, and a report must not fail for it.
    """
    try:
        found = from_json(Advice, (run / FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, DataError):
        return None
    if found.schema_version != SCHEMA_VERSION:
        return None
    task = next((task for task in found.tasks if f"{found.setting.name}-{task.name}" == report.name), None)
    model = (report.lineage.get("base"), report.gate.precision)
    if task is None or model != (found.setting.base, found.setting.precision):
        return None
    trained = report.training.figures.get("trainable_parameters", task.parameters)
    # AdaLoRA trains more than it keeps.
    return found if report.training.method == "adalora" or trained == task.parameters else None
