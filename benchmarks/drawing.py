"""An SVG that stands by itself in a page: shapes of the report's, with colours of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from pipeline.evidence.report import svg

INKS = ("#1f5fa8", "#74aef2", "#b86f52", "#d9a441", "#8672b8", "#4d8f83", "#6a665f", "#c2a96f")
_STYLE = """
text { font: 11px system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: #57534b; }
.heading { font-weight: 600; fill: #1d1c1a; } .label { fill: #1d1c1a; }
.value, .tick-left { text-anchor: end; } .value { fill: #1d1c1a; }
.tick { text-anchor: middle; font-size: 10px; }
.paper { fill: #fbfaf7; } .grid { stroke: #e5e1d8; } .axis { stroke: #6a665f; }
.path { fill: none; stroke-width: 1.5; } .own { stroke: #fbfaf7; }
"""
_GUTTER, _RIGHT, _ROW = 180.0, 66.0, 19.0


@dataclass(frozen=True)
class Bar:
    """A figure from zero, in the ink of its group, and what is written beside it."""

    label: str
    group: int
    value: float
    text: str


def write(path: Path, width: float, height: float, title: str, note: str, parts: Sequence[Markup]) -> None:
    """Write a picture; GitHub shows it as an image, so its style goes with it and its paper is not clear."""
    inks = "".join(
        f".ink{at} rect, .ink{at} circle {{ fill: {ink}; }} .ink{at} polyline {{ stroke: {ink}; }}\n"
        for at, ink in enumerate(INKS)
    )
    style = Markup("<style>{}</style>").format(Markup(_STYLE + inks))
    drawing = svg.document("chart", width, height, title, note, [style, _paper(width, height), *parts])
    size = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
    named = str(drawing).replace("<svg ", size, 1)
    path.write_text(named + "\n", encoding="utf-8")


def bars(heading: str, rows: Sequence[Bar], x: float, y: float, width: float) -> list[Markup]:
    """Bars under a heading."""
    longest = max((row.value for row in rows), default=0.0) or 1.0
    at = svg.linear(0.0, longest, x + _GUTTER, x + width - _RIGHT)
    parts = [svg.text("heading", x + 4, y + 14, heading)]
    for index, row in enumerate(rows):
        top = y + 22 + _ROW * index
        bar = svg.rect("own", at(0), top + 2, max(1.0, at(row.value) - at(0)), _ROW - 6)
        parts += [
            svg.text("label", x + 4, top + 12, row.label),
            inked(row.group, bar),
            svg.text("value", x + width - 4, top + 12, row.text),
        ]
    return parts


def bars_height(count: int) -> float:
    """Room that `bars` takes for so many rows, and a gap below."""
    return 22 + _ROW * count + 14


def inked(group: int, shape: Markup) -> Markup:
    """A shape in the ink of its group."""
    return Markup('<g class="ink{}">{}</g>').format(group % len(INKS), shape)


def _paper(width: float, height: float) -> Markup:
    return svg.rect("paper", 0, 0, width, height)
