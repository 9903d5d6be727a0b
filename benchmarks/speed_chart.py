"""The figures of speed.py as bars, a panel for each figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import drawing
from speed_calls import TOGETHER, Calls

_INKS = {"ours": 0, "llama.cpp": 2, "OpenVINO": 4, "ORT": 5}


def draw(
    path: Path,
    found: Mapping[str, Mapping[str, float]],
    calls: Mapping[str, Mapping[str, Calls]],
    note: str,
) -> None:
    """Write the picture: two panels side by side, and so on down.

    Args:
        path: of the SVG.
        found: contender → its figures.
        calls: contender → set of utterances → its calls; each set has a panel.
        note: says what was measured where.
    """

    def figures(key: str, factor: float = 1.0) -> dict[str, float]:
        return {name: factor * each[key] for name, each in found.items()}

    sets = [name for name in next(iter(calls.values()), {}) if name != TOGETHER]
    panels = {
        "prefill, tokens/s": figures("prefill"),
        "decode, tokens/s": figures("decode"),
        **{
            f"one call, {said}, median, ms: less is better": {
                name: each[said].p50_ms for name, each in calls.items()
            }
            for said in sets
        },
        "load, ms: less is better": figures("load_ms"),
        "peak memory, MB: less is better": figures("peak_bytes", 1e-6),
    }
    width, height = 820.0, drawing.bars_height(len(found))
    parts = []
    for at, (heading, values) in enumerate(panels.items()):
        rows = [
            drawing.Bar(name, _INKS[name.split()[0]], value, f"{value:,.0f}")
            for name, value in values.items()
        ]
        parts += drawing.bars(heading, rows, width / 2 * (at % 2), height * (at // 2), width / 2)
    tall = height * -(-len(panels) // 2)
    drawing.write(path, width, tall, "Bundles and peers, the same checkpoint on one machine", note, parts)
