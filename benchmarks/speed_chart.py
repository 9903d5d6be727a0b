"""The figures of speed.py as bars, a panel for each figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import drawing

PANELS = (
    ("prefill, tokens/s", "prefill", 1.0),
    ("decode, tokens/s", "decode", 1.0),
    ("one call, median, ms: less is better", "call_p50_ms", 1.0),
    ("load, ms: less is better", "load_ms", 1.0),
    ("peak memory, MB: less is better", "peak_bytes", 1e-6),
)
_INKS = {"ours": 0, "llama.cpp": 2, "OpenVINO": 4, "ORT": 5}


def draw(path: Path, found: Mapping[str, Mapping[str, float]], note: str) -> None:
    """Write the picture: two panels side by side, and so on down."""
    panels = [panel for panel in PANELS if all(panel[1] in figures for figures in found.values())]
    width, height = 820.0, drawing.bars_height(len(found))
    parts = []
    for at, (heading, key, factor) in enumerate(panels):
        rows = [
            drawing.Bar(name, _INKS[name.split()[0]], factor * figures[key], f"{factor * figures[key]:,.0f}")
            for name, figures in found.items()
        ]
        parts += drawing.bars(heading, rows, width / 2 * (at % 2), height * (at // 2), width / 2)
    tall = height * -(-len(panels) // 2)
    drawing.write(path, width, tall, "Bundles and peers, the same checkpoint on one machine", note, parts)
