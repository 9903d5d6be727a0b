"""The chart of a rounding's frontier: bytes of all matrices against the divergence that was foretold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from pipeline.evidence.report import svg
from pipeline.evidence.report.charts import WIDTH
from pipeline.evidence.report.figures import number, plain, power, size

_TICKS = 6
"""Most figures on the axis of bytes."""


def frontier(
    points: Sequence[tuple[float, ...]], chosen: tuple[float, float], title: str, note: str
) -> Markup:
    """A line through all choices, and dashed lines that cross at the one taken.

    Args:
        points: (bytes, divergence), the smallest first; at least one. Divergence is on a logarithmic axis.
        chosen: one of them.
        title: names the chart.
        note: says what it shows.
    """
    top, base, left = 12.0, 214.0, 38.0
    decades = [math.log10(kl) for _, kl in points if kl > 0] or [0.0]
    low, high = math.floor(min(decades)), math.ceil(max(decades))
    first, last = points[0][0], points[-1][0]
    along = svg.linear(first, max(last, first + 1), left, WIDTH - 12.0)
    up = svg.logarithmic(10.0**low, 10.0 ** max(high, low + 1), base, top)
    parts: list[Markup] = [svg.line("axis", left, base, WIDTH - 12, base)]
    for exponent in range(low, max(high, low + 1) + 1):
        y = up(10.0**exponent)
        parts.append(svg.line("grid", left, y, WIDTH - 12, y))
        parts.append(svg.text("small", left - 5, y + 3.5, power(10.0**exponent)))
    for tick in _ticks(first, last):
        parts.append(svg.line("axis", along(tick), base, along(tick), base + 4))
        parts.append(svg.text("tick-label", along(tick), base + 16, plain(size(tick))))
    x, y = along(chosen[0]), up(chosen[1])
    right = x > WIDTH / 2
    said = f"{size(chosen[0])}, {number(chosen[1])}"
    parts += [
        svg.polyline("path other", [(along(nbytes), up(kl)) for nbytes, kl in points]),
        svg.line("limit", x, y, x, base),
        svg.line("limit", left, y, x, y),
        svg.circle("dot bundle", x, y, said),
        svg.text("value" if right else "label", x - 8 if right else x + 8, y + 14 if right else y - 6, said),
    ]
    return svg.document("chart", WIDTH, base + 20, title, note, parts)


def _ticks(first: float, last: float) -> list[float]:
    """Round figures between two, few of them."""
    if last <= first:
        return [first]
    power_of_ten = 10.0 ** math.floor(math.log10((last - first) / _TICKS))
    step = next(
        step for times in (1, 2, 5, 10, 20) if (last - first) / (step := times * power_of_ten) <= _TICKS
    )
    return [step * at for at in range(math.ceil(first / step), math.floor(last / step) + 1)]
