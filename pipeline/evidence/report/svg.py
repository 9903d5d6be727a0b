"""Scales and shapes of SVG. Texts and titles may come from anywhere: `Markup.format` escapes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

Position = Callable[[float], float]
"""A figure → its x or y."""


def linear(low: float, high: float, start: float, end: float) -> Position:
    """A linear scale; what lies beyond an end is drawn at the end."""

    def at(value: float) -> float:
        return start + (end - start) * min(1.0, max(0.0, (value - low) / (high - low)))

    return at


def logarithmic(low: float, high: float, start: float, end: float) -> Position:
    """A logarithmic scale; zero and less lies at the start."""
    on_exponents = linear(math.log10(low), math.log10(high), start, end)
    return lambda value: start if value <= 0 else on_exponents(math.log10(value))


def document(
    kind: str, width: float, height: float, title: str, note: str, parts: Sequence[Markup]
) -> Markup:
    """A picture that a screen reader announces by its title and describes by its note."""
    return Markup(
        '<svg class="{}" viewBox="0 0 {:g} {:g}" role="img"><title>{}</title><desc>{}</desc>{}</svg>'
    ).format(kind, width, height, title, note, Markup("").join(parts))


def rect(kind: str, x: float, y: float, width: float, height: float, title: str = "") -> Markup:
    """A rectangle, with a tooltip when it has a title."""
    told = Markup("<title>{}</title>").format(title) if title else ""
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>').format(
        kind, x, y, width, height, told
    )


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """A straight line."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def polyline(kind: str, points: Sequence[tuple[float, float]]) -> Markup:
    """Straight lines from point to point."""
    return Markup('<polyline class="{}" points="{}"/>').format(
        kind, " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    )


def circle(kind: str, x: float, y: float, title: str = "") -> Markup:
    """A dot, with a tooltip when it has a title."""
    told = Markup("<title>{}</title>").format(title) if title else ""
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.5">{}</circle>').format(kind, x, y, told)


def text(kind: str, x: float, y: float, text: str) -> Markup:
    """A text; its class says at which end x is."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, text)
