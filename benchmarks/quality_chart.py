"""Divergence over bytes: below and to the left is better. An engine's forms are joined."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import drawing
from markupsafe import Markup
from quality_forms import Form

from pipeline.evidence.report import svg

_INKS = {"ours": 0, "llama.cpp": 2, "OpenVINO": 4}
_LABELS = {"ours": ("value", -6, 14), "llama.cpp": ("label", 8, 4), "OpenVINO": ("label", 6, -8)}
"""Which end of a label lies where, from its dot: forms of two engines may be close to each other."""
_TICK = 20
"""Megabytes."""


def draw(path: Path, found: Mapping[Form, Mapping[str, float]]) -> None:
    """Write the picture.

    Args:
        path: an SVG.
        found: each form's `bytes` and `kl_mean`.
    """
    width, height = 720.0, 380.0
    left, right, top, base = 54.0, width - 40.0, 46.0, height - 44.0
    sizes = [figures["bytes"] / 1e6 for figures in found.values()]
    decades = [math.log10(figures["kl_mean"]) for figures in found.values() if figures["kl_mean"] > 0]
    first, last = _TICK * math.floor(min(sizes) / _TICK), _TICK * math.ceil(max(sizes) / _TICK + 0.01)
    low = math.floor(min(decades))
    high = max(math.ceil(max(decades)), low + 1)
    along = svg.linear(first, last, left, right)
    up = svg.logarithmic(10.0**low, 10.0**high, base, top)
    parts = [svg.text("heading", 8, 18, "mean KL from float32 in nats, over MB: less of both is better")]
    for exponent in range(low, high + 1):
        y = up(10.0**exponent)
        parts.append(svg.line("grid", left, y, right, y))
        parts.append(svg.text("tick-left", left - 6, y + 3.5, f"{10.0**exponent:g}"))
    for megabytes in range(first, last + 1, _TICK):
        x = along(megabytes)
        parts.append(svg.line("axis", x, base, x, base + 4))
        parts.append(svg.text("tick", x, base + 16, str(megabytes)))
    parts.append(svg.line("axis", left, base, right, base))
    parts.append(svg.text("tick", (left + right) / 2, base + 34, "graph and weights, MB"))
    for at, engine in enumerate(_INKS):
        points = [
            (along(figures["bytes"] / 1e6), up(figures["kl_mean"]), form)
            for form, figures in sorted(found.items(), key=lambda item: item[1]["bytes"])
            if form.engine == engine
        ]
        if not points:
            continue
        line = svg.polyline("path", [(x, y) for x, y, _ in points])
        dots = [
            svg.circle("own", x, y, f"{form.name}: {found[form]['kl_mean']:.2g} nats")
            for x, y, form in points
        ]
        parts.append(drawing.inked(_INKS[engine], Markup("").join([line, *dots])))
        kind, right_by, down_by = _LABELS[engine]
        parts += [svg.text(kind, x + right_by, y + down_by, form.label) for x, y, form in points]
        parts.append(drawing.inked(_INKS[engine], svg.rect("own", left + 100 * at, 28, 9, 9)))
        parts.append(svg.text("label", left + 14 + 100 * at, 36.5, engine))
    note = "; ".join(
        f"{form.name}: {figures['bytes'] / 1e6:.1f} MB, {figures['kl_mean']:.2g} nats"
        for form, figures in found.items()
    )
    drawing.write(path, width, height, "What rounding costs, by the size of the model", note, parts)
