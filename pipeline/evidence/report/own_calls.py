"""Where the time of the bundle's own calls goes: a stacked bar and a row for each language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.evidence.report import svg
from pipeline.evidence.report.charts import WIDTH, Chart
from pipeline.evidence.report.figures import milliseconds, share
from pipeline.evidence.report.words import Language, name, say
from runtime.report import OwnCalls, Report

PARTS = ("prefill", "decode", "grammar", "python")
"""In the order they come in a call; each is a class of style.css and, behind `part.`, a key of the words."""
_NARROWEST = 26.0
"""Of a part that has its share written below it."""


@dataclass(frozen=True)
class Part:
    """One part of a mean call."""

    kind: str
    label: str
    ms: float
    share: float


@dataclass(frozen=True)
class Row:
    """The calls in one language of utterances, and the parts of their mean."""

    label: str
    calls: OwnCalls
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class CallTime:
    """All calls, told in one language."""

    rows: tuple[Row, ...]
    chart: Chart


def call_time(report: Report, language: Language) -> CallTime | None:
    """Of the bundle's own calls; None where there are none."""
    own = report.latency.own_calls
    if not own:
        return None
    rows = tuple(
        Row(name(language, spoken), calls, tuple(_parts(calls, language))) for spoken, calls in own.items()
    )
    title, note = say(language, "chart.own"), say(language, "chart.own.note")
    return CallTime(rows, Chart(title, note, _stacked(rows, language, title, note)))


def _parts(calls: OwnCalls, language: Language) -> list[Part]:
    taken = (calls.prefill_ms, calls.decode_ms, calls.grammar_ms, calls.python_ms)
    return [
        Part(kind, say(language, f"part.{kind}"), ms, ms / sum(taken))
        for kind, ms in zip(PARTS, taken, strict=True)
    ]


def _stacked(rows: Sequence[Row], language: Language, title: str, note: str) -> Markup:
    """A bar for each row, as long as its mean call, from zero."""
    height, end = 66.0, WIDTH - 4.0
    longest = max(sum(part.ms for part in row.parts) for row in rows)
    at = svg.linear(0.0, longest, 4.0, end)
    parts: list[Markup] = []
    for index, row in enumerate(rows):
        y, before = height * index, 0.0
        p50, p95 = milliseconds(row.calls.times.p50), milliseconds(row.calls.times.p95)
        parts.append(svg.text("heading", 4, y + 14, row.label))
        parts.append(svg.text("value", end, y + 14, say(language, "own.times", p50, p95)))
        for part in row.parts:
            left, right = at(before), at(before + part.ms)
            told = f"{part.label}: {milliseconds(part.ms)}, {share(part.share)}"
            parts.append(svg.rect(f"bar {part.kind}", left, y + 22, right - left, 16, told))
            if right - left >= _NARROWEST:
                parts.append(svg.text("count", (left + right) / 2, y + 51, share(part.share)))
            before += part.ms
    told = "; ".join(
        f"{row.label}: " + ", ".join(f"{part.label} {share(part.share)}" for part in row.parts)
        for row in rows
    )
    return svg.document("chart", WIDTH, height * len(rows), title, f"{note} {told}", parts)
