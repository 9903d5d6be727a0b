"""Charts as SVG, drawn here so that the page needs no script: shapes only, colours come from style.css.

Every chart is `WIDTH` units wide, about the pixels of a phone, and grows with its column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from pipeline.evidence.report import svg
from pipeline.evidence.report.figures import Budget, milliseconds, number, power, share, times
from runtime.report import Comparison, Distribution, Estimate, Histogram, Verdict

WIDTH = 360
_LETTERS = 15
"""Letters of a label that fit the gutter; a Chinese character takes the room of two."""
_COLOURED = frozenset({"base", "unmerged", "merged", "onnx", "weights_only", "shipped", "bundle"})


@dataclass(frozen=True)
class Chart:
    """A drawing, its title, and what it shows."""

    title: str
    note: str
    drawing: Markup


@dataclass(frozen=True)
class Dot:
    """An estimate to mark, and the contender whose colour it has."""

    contender: str
    estimate: Estimate


@dataclass(frozen=True)
class Mark:
    """A value to mark with an upright line, and what to write at it."""

    value: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A form of the model, and the error of its operators: (place in the order of all, error)."""

    form: str
    errors: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Spot:
    """An operator to point at."""

    at: int
    error: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A figure to draw from zero, with what to write beside it."""

    contender: str
    label: str
    value: float
    text: str


@dataclass(frozen=True)
class Timing:
    """One contender's times at one prompt length, in milliseconds, and their ratio to the reference."""

    contender: str
    label: str
    times: Distribution
    ratio: Estimate | None


def gauge(used: Budget, verdict: Verdict, title: str) -> Markup:
    """How much of a threshold's budget is used; the line at two thirds is the threshold."""
    width, height, whole = 132.0, 14.0, 1.5
    at = svg.linear(0.0, whole, 2.0, width - 2.0)
    parts = [
        svg.rect("track", at(0), 5, at(1) - at(0), 4),
        svg.rect(f"fill {verdict}", at(0), 5, max(1.5, at(used.value) - at(0)), 4),
        svg.line("limit", at(1), 1, at(1), 13),
    ]
    if used.high > used.low:
        parts.append(svg.line(f"range {verdict}", at(used.low), 7, at(used.high), 7))
    return svg.document("gauge", width, height, title, "", parts)


def site_errors(
    curves: Sequence[Curve],
    sites: int,
    layers: Sequence[tuple[int, str]],
    guilty: Spot | None,
    title: str,
    note: str,
) -> Markup:
    """A line for each form over the operators in order, on a logarithmic axis from 1e-9 to 10.

    Args:
        curves: one or more.
        sites: how many operators there are.
        layers: the first operator of each layer, and the layer's name.
        guilty: where it breaks.
        title: names the chart.
        note: says what it shows.
    """
    top, base, left = 16.0, 214.0, 34.0
    along = svg.linear(0.0, max(1.0, sites - 1.0), left, WIDTH - 6.0)
    up = svg.logarithmic(1e-9, 10.0, base, top)
    parts: list[Markup] = []
    for exponent in range(-9, 2):
        y = up(10.0**exponent)
        parts.append(svg.line("grid", left, y, WIDTH - 6, y))
        if exponent % 3 == 0:
            parts.append(svg.text("small", left - 5, y + 3.5, power(10.0**exponent)))
    for at, label in layers[:: math.ceil(len(layers) / 8) or 1]:
        parts.append(svg.line("axis", along(at), base, along(at), base + 4))
        parts.append(svg.text("tick-label", along(at), base + 15, label))
    for curve in curves:
        own = colour(curve.form)
        points = [(along(at), up(error)) for at, error in curve.errors]
        parts += [svg.polyline(f"path {own}", points), svg.circle(f"dot {own}", *points[-1])]
    if guilty is not None:
        x, y, left_of = along(guilty.at), up(guilty.error), along(guilty.at) > WIDTH / 2
        parts += [
            svg.line("guilty", x, 4, x, base),
            svg.circle("ring", x, y),
            svg.text("guilty end" if left_of else "guilty", x - 5 if left_of else x + 5, 11, guilty.text),
        ]
    return svg.document("chart", WIDTH, base + 20, title, note, parts)


def kl_by_form(
    rows: Sequence[tuple[str, Comparison]], limits: Sequence[Mark], title: str, note: str
) -> Markup:
    """KL of each form of the model, on a logarithmic axis from 1e-9 to 100 nats."""
    height, top = 30, 18
    bottom = top + height * len(rows)
    at = svg.logarithmic(1e-9, 100.0, 4.0, WIDTH - 4.0)
    parts = [*_decades(at, range(-9, 3), bottom), *_limits(at, limits, bottom)]
    for index, (label, comparison) in enumerate(rows):
        y = top + height * index
        mean, own = comparison.kl_mean, colour(comparison.name)
        parts += [
            svg.text("label", 4, y + 10, label),
            svg.text("value", WIDTH - 4, y + 10, number(mean.value)),
            svg.line(f"thin {own}", at(mean.value), y + 20, at(comparison.kl_max.value), y + 20),
            svg.line(f"thin {own}", at(comparison.kl_max.value), y + 18, at(comparison.kl_max.value), y + 22),
            svg.line(f"tick {own}", at(comparison.kl_p99.value), y + 16, at(comparison.kl_p99.value), y + 24),
            svg.line(f"thick {own}", at(mean.low), y + 20, at(mean.high), y + 20),
            svg.circle(f"dot {own}", at(mean.value), y + 20),
        ]
    return svg.document("chart", WIDTH, bottom + 20, title, note, parts)


def kl_histogram(histogram: Histogram, marks: Sequence[Mark], title: str, note: str) -> Markup:
    """Share of positions in each bin of KL; bins are drawn alike wide, one for each decade.

    Args:
        histogram: its first bin starts at 0 and the others are decades.
        marks: what to mark, in nats.
        title: names the chart.
        note: says what it shows.
    """
    counts, total = histogram.counts, max(1, sum(histogram.counts))
    highest = max([1, *counts])
    top, base = 34.0, 154.0
    step = (WIDTH - 8.0) / max(1, len(counts))
    up = svg.linear(0.0, float(highest), 0.0, base - top)
    parts = [svg.line("axis", 4, base, WIDTH - 4, base)]
    for index, count in enumerate(counts):
        x = 4 + step * index
        parts.append(
            svg.rect("bar bundle", x + 1, base - up(count), step - 2, up(count), share(count / total))
        )
        if count:
            parts.append(svg.text("count", x + step / 2, base - up(count) - 4, _short_share(count / total)))
    for index, edge in enumerate(histogram.edges[1:], 1):
        parts.append(svg.text("tick-label", 4 + step * index, base + 13, power(edge)))
    parts += _marks([(4 + step * _bins_left(histogram.edges, mark.value), mark.text) for mark in marks], base)
    return svg.document("chart", WIDTH, base + 20, title, note, parts)


def _bins_left(edges: Sequence[float], value: float) -> float:
    """Where a value lies, in bins from the left; within a decade by its logarithm."""
    for index, (low, high) in enumerate(pairwise(edges)):
        if value <= high:
            inside = 0.5 if low <= 0 else math.log(max(value, low) / low) / math.log(high / low)
            return index + inside
    return float(len(edges) - 1)


def agreement(
    rows: Sequence[tuple[str, Comparison]], limits: Sequence[Mark], title: str, note: str
) -> Markup:
    """Share of positions with the same most probable token, on an axis that ends at 100 %."""
    height, top = 30, 18
    bottom = top + height * len(rows)
    lows = [comparison.top1.low for _, comparison in rows]
    lowest = min([0.98, *lows, *(limit.value for limit in limits)])
    start = max(0.0, math.floor((lowest - 0.1 * (1 - lowest)) * 50) / 50)
    at = svg.linear(start, 1.0, 8.0, WIDTH - 12.0)
    parts = [*_percents(at, start, bottom), *_limits(at, limits, bottom)]
    for index, (label, comparison) in enumerate(rows):
        y, own = top + height * index, colour(comparison.name)
        parts += [
            svg.text("label", 4, y + 10, label),
            svg.text("value", WIDTH - 4, y + 10, share(comparison.top1.value)),
            svg.line(f"thick {own}", at(comparison.top1.low), y + 20, at(comparison.top1.high), y + 20),
            svg.circle(f"dot {own}", at(comparison.top1.value), y + 20),
        ]
    return svg.document("chart", WIDTH, bottom + 20, title, note, parts)


def accuracy(rows: Sequence[tuple[str, Sequence[Dot]]], title: str, note: str) -> Markup:
    """One row for each group of utterances, with a dot for each contender, from 0 to 100 %."""
    height, top, gutter = 26, 4, 108.0
    bottom = top + height * len(rows)
    at = svg.linear(0.0, 1.0, gutter, WIDTH - 12.0)
    parts = [*_percents(at, 0.0, bottom)]
    for index, (label, dots) in enumerate(rows):
        y = top + height * index + height / 2
        parts.append(svg.text("label", 4, y + 4, _fitting(label)))
        parts.append(svg.line("rule", gutter, y, WIDTH - 12, y))
        for order, dot in enumerate(dots):
            # A little apart, so that equal contenders do not hide each other.
            middle, own = y + 5 * (order - (len(dots) - 1) / 2), colour(dot.contender)
            parts.append(svg.line(f"thin {own}", at(dot.estimate.low), middle, at(dot.estimate.high), middle))
            parts.append(svg.circle(f"dot {own}", at(dot.estimate.value), middle, share(dot.estimate.value)))
    return svg.document("chart", WIDTH, bottom + 20, title, note, parts)


def latency(groups: Sequence[tuple[str, Sequence[Timing]]], title: str, note: str) -> Markup:
    """Every contender's times as a strip that is darkest at the median, on an axis from zero."""
    gutter, right, row, heading = 82.0, 104.0, 30.0, 22.0
    longest = max([timing.times.p99 for _, timings in groups for timing in timings], default=1.0)
    at = svg.linear(0.0, longest or 1.0, gutter, WIDTH - right)
    parts: list[Markup] = []
    y = 0.0
    for label, timings in groups:
        parts.append(svg.text("heading", 4, y + 14, label))
        y += heading
        for timing in timings:
            parts += _timing(timing, at, y)
            y += row
    return svg.document("chart", WIDTH, y + 4, title, note, parts)


def _timing(timing: Timing, at: svg.Position, y: float) -> list[Markup]:
    own, found = colour(timing.contender), timing.times
    parts = [
        svg.text("label", 4, y + 13, _fitting(timing.label, 12)),
        svg.rect(f"way-to {own}", at(0), y + 8, at(found.p50) - at(0), 2),
    ]
    # Intervals inside one another, each as faint as the next: where they lie over each other it is dark.
    for low, high in zip(found.ventiles[: len(found.ventiles) // 2], reversed(found.ventiles), strict=False):
        parts.append(svg.rect(f"band {own}", at(low), y + 2, max(1.0, at(high) - at(low)), 14))
    parts += [
        svg.line(f"median {own}", at(found.p50), y, at(found.p50), y + 18),
        svg.line("whisker", at(found.p95), y + 5, at(found.p95), y + 13),
        svg.line("whisker", at(found.p99), y + 5, at(found.p99), y + 13),
        svg.text("value", WIDTH - 4, y + 10, milliseconds(found.p50)),
    ]
    if timing.ratio is not None:
        ratio = f"{times(timing.ratio.value)} ({timing.ratio.low:.2f}–{timing.ratio.high:.2f})"
        parts.append(svg.text("small", WIDTH - 4, y + 22, ratio))
    return parts


def bars(rows: Sequence[Bar], title: str) -> Markup:
    """Figures of one kind, from zero."""
    gutter, right, row = 108.0, 76.0, 24.0
    at = svg.linear(0.0, max([bar.value for bar in rows], default=1.0) or 1.0, gutter, WIDTH - right)
    parts: list[Markup] = []
    for index, bar in enumerate(rows):
        y = row * index
        parts += [
            svg.text("label", 4, y + 15, _fitting(bar.label)),
            svg.rect(f"bar {colour(bar.contender)}", at(0), y + 5, max(1.0, at(bar.value) - at(0)), 12),
            svg.text("value", WIDTH - 4, y + 15, bar.text),
        ]
    told = "; ".join(f"{bar.label}: {bar.text}" for bar in rows)
    return svg.document("chart", WIDTH, row * len(rows) + 4, title, told, parts)


def _percents(at: svg.Position, start: float, bottom: float) -> list[Markup]:
    step = next(
        step for step in (0.25, 0.1, 0.05, 0.02, 0.01, 0.005) if (1 - start) / step >= 2 or step == 0.005
    )
    marks = [1 - step * index for index in range(int((1 - start) / step + 1e-9) + 1)]
    return [
        part
        for mark in marks
        for part in (
            svg.line("grid", at(mark), 2, at(mark), bottom),
            svg.text("tick-label", at(mark), bottom + 13, f"{100 * mark:.3g}"),
        )
    ]


def _decades(at: svg.Position, exponents: range, bottom: float) -> list[Markup]:
    parts: list[Markup] = []
    for exponent in exponents:
        x = at(10.0**exponent)
        parts.append(svg.line("grid", x, 2, x, bottom))
        if exponent % 3 == 0 and 4 < x < WIDTH - 4:
            parts.append(svg.text("tick-label", x, bottom + 13, power(10.0**exponent)))
    return parts


def _limits(at: svg.Position, limits: Sequence[Mark], bottom: float) -> list[Markup]:
    return _marks([(at(limit.value), limit.text) for limit in limits], bottom, "limit")


def _marks(marks: Sequence[tuple[float, str]], bottom: float, kind: str = "mark") -> list[Markup]:
    """Upright lines with their texts at the top: the first to the left of its line, others to the right.

    Where there is no room to the right, they go to the left, a line lower.
    """
    parts: list[Markup] = []
    for index, (x, text) in enumerate(marks):
        left = x > 90 and (index == 0 or x > WIDTH - 90)
        parts.append(svg.line(kind, x, 2, x, bottom))
        parts.append(
            svg.text(
                "value" if left else "label", x - 4 if left else x + 4, 21 if left and index else 10, text
            )
        )
    return parts


def _short_share(value: float) -> str:
    return f"{100 * value:.0f}\u00a0%" if value >= 0.01 else "<1\u00a0%"


def _fitting(label: str, letters: int = _LETTERS) -> str:
    room = letters
    for index, letter in enumerate(label):
        room -= 2 if ord(letter) > 0x2E80 else 1
        if room < 0:
            return label[:index].rstrip() + "…"
    return label


def colour(known: str) -> str:
    """The class of a form or contender; ones that are not known share a colour."""
    if known == "candidate":
        return "bundle"
    return known if known in _COLOURED else "other"
