"""What an export costs by the size of the model: wall time and peak memory, beside llama.cpp's.

    python benchmarks/export_cost.py --tokenizer runs/smollm2-135m/merged --work work \
        --llama-cpp llama/llama.cpp --llama-quantize llama/build/bin/llama-quantize \
        --chart docs/export-cost.svg

Of each shape it makes a bfloat16 checkpoint with random weights, or finds the one that it left in the work
folder. `cockpit export`, and llama.cpp's converter and quantizer, then read it in turn, each in a process of
its own. Prints a table for people, then one JSON line for machines.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import drawing
from markupsafe import Markup
from random_checkpoint import SHAPES, make

from export.weights import Checkpoint
from pipeline.evidence.latency import this_machine
from pipeline.evidence.report import svg

OURS, PEER = "cockpit-edge", "llama.cpp"
GGUF_TYPES = {"int4": "q4_0", "int8": "q8_0"}
# Started from a small process: Linux counts what the parent of a process holds into the process's peak.
_MEASURED = """
import json, os, sys, time
started = time.perf_counter()
_, status, used = os.wait4(os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:]), 0)
print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - started, used.ru_maxrss * 1024]))
"""


@dataclass(frozen=True)
class Cost:
    """Seconds of wall time, bytes of the largest resident set, bytes written."""

    seconds: float
    peak: float
    size: float


def main() -> None:
    """Measure every shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", action="append", choices=tuple(SHAPES), help="all, unless named")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a Hugging Face folder that has one")
    parser.add_argument("--precision", choices=tuple(GGUF_TYPES), default="int4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, required=True, help="where everything is made; 18 GB free")
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's source, for its converter")
    parser.add_argument("--llama-python", default=sys.executable, help="an interpreter that can run it")
    parser.add_argument("--llama-quantize", type=Path, help="the llama-quantize program")
    parser.add_argument("--chart", type=Path, help="an SVG to write")
    options = parser.parse_args()
    if (options.llama_cpp is None) != (options.llama_quantize is None):
        parser.error("--llama-cpp and --llama-quantize go together")
    found: dict[str, dict[str, Cost]] = {}
    sizes = {}
    print(f"{'':14} {'parameters':>10} {'':>13} {'wall s':>7} {'peak MB':>8} {'written MB':>10}")
    for shape in options.shape or SHAPES:
        checkpoint = options.work / shape
        if not checkpoint.exists():
            make(shape, options.tokenizer, checkpoint)
        weights = Checkpoint(checkpoint)
        sizes[shape] = sum(math.prod(weights.shape(name)) for name in weights.names)
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            found[shape] = _measure(options, checkpoint, Path(folder))
        for tool, cost in found[shape].items():
            print(
                f"{shape:14} {sizes[shape] / 1e6:8.0f} M {tool:>13} {cost.seconds:7.1f}"
                f" {cost.peak / 1e6:8.0f} {cost.size / 1e6:10.0f}"
            )
    if options.chart:
        _draw(options.chart, options.precision, sizes, found)
    machine = this_machine()
    print(
        json.dumps(
            {
                "machine": machine.processor,
                "cores": machine.cores,
                "precision": options.precision,
                "rounds": options.rounds,
                **{
                    shape: {"parameters": sizes[shape]} | {tool: vars(cost) for tool, cost in costs.items()}
                    for shape, costs in found.items()
                },
            }
        )
    )


def _measure(options: argparse.Namespace, checkpoint: Path, folder: Path) -> dict[str, Cost]:
    """The median cost of each tool over rounds in turn."""
    tools: dict[str, Callable[[], Cost]] = {OURS: lambda: _ours(options, checkpoint, folder / "onnx")}
    if options.llama_cpp:
        tools[PEER] = lambda: _llama(options, checkpoint, folder / "gguf")
    rounds = [{name: run() for name, run in tools.items()} for _ in range(options.rounds)]

    def middle(name: str, figure: str) -> float:
        return float(statistics.median(getattr(costs[name], figure) for costs in rounds))

    return {name: Cost(*(middle(name, figure) for figure in ("seconds", "peak", "size"))) for name in tools}


def _ours(options: argparse.Namespace, checkpoint: Path, out: Path) -> Cost:
    code = "from pipeline.cli import main; main()"
    command = [sys.executable, "-c", code, "export", checkpoint, "--precision", options.precision]
    return _cost([[*command, "--out", out]], out)


def _llama(options: argparse.Namespace, checkpoint: Path, out: Path) -> Cost:
    """Converted to bfloat16 as it is, then quantized: what llama.cpp's own documentation does."""
    out.mkdir()
    checkpoint = _as_llama(checkpoint, out / "checkpoint")
    plain, small = out / "plain.gguf", out / "small.gguf"
    converter = options.llama_cpp / "convert_hf_to_gguf.py"
    convert = [options.llama_python, converter, checkpoint, "--outtype", "bf16", "--outfile", plain]
    quantize = [options.llama_quantize, plain, small, GGUF_TYPES[options.precision]]
    return _cost([convert, [*quantize, len(os.sched_getaffinity(0))]], small)


def _as_llama(checkpoint: Path, out: Path) -> Path:
    """The same tensors under a Llama config.

    llama.cpp's converter knows a tokenizer by what it makes of a text, and what transformers makes of
    another model's tokenizer under a Qwen config is one that nobody published.
    """
    out.mkdir()
    for file in checkpoint.iterdir():
        (out / file.name).symlink_to(file.resolve())
    config = json.loads((checkpoint / "config.json").read_bytes())
    (out / "config.json").unlink()
    llama = config | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (out / "config.json").write_text(json.dumps(llama), encoding="utf-8")
    return out


def _cost(commands: Sequence[Sequence[object]], written: Path) -> Cost:
    """Run commands one after the other; removes what they wrote."""
    seconds, peak = 0.0, 0.0
    for command in commands:
        measured = [sys.executable, "-S", "-c", _MEASURED, *(str(word) for word in command)]
        done = subprocess.run(measured, capture_output=True, text=True, check=True)
        code, took, used = json.loads(done.stdout.splitlines()[-1])
        if code:
            raise SystemExit(f"{command[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
        seconds, peak = seconds + took, max(peak, used)
    files = list(written.rglob("*")) if written.is_dir() else [written]
    size = sum(file.stat().st_size for file in files)
    shutil.rmtree(written if written.is_dir() else written.parent)
    return Cost(seconds, peak, size)


def _draw(path: Path, precision: str, sizes: dict[str, int], found: dict[str, dict[str, Cost]]) -> None:
    width, height = 720.0, 270.0
    seconds = {shape: {tool: cost.seconds for tool, cost in costs.items()} for shape, costs in found.items()}
    memory = {
        shape: {tool: cost.peak / 1e9 for tool, cost in costs.items()} for shape, costs in found.items()
    }
    parts = [
        *_panel(f"export to {precision}, wall time in s", sizes, seconds, 0.0, width / 2, height),
        *_panel("peak memory in GB", sizes, memory, width / 2, width, height),
    ]
    note = "; ".join(
        f"{shape}, {tool}: {cost.seconds:.1f} s, {cost.peak / 1e6:.0f} MB"
        for shape, costs in found.items()
        for tool, cost in costs.items()
    )
    drawing.write(path, width, height, "What an export costs by the model's size", note, parts)


def _panel(
    heading: str,
    sizes: dict[str, int],
    figures: dict[str, dict[str, float]],
    left: float,
    right: float,
    height: float,
) -> list[Markup]:
    """A line for each tool over the parameters in thousands of millions, both axes from zero."""
    top, base = 44.0, height - 44
    highest = max(value for row in figures.values() for value in row.values())
    step = _step(highest)
    rungs = math.ceil(highest / step)
    up = svg.linear(0.0, step * rungs, base, top)
    along = svg.linear(0.0, 1.05 * max(sizes.values()), left + 40, right - 16)
    parts = [svg.text("heading", left + 8, 18, heading)]
    for rung in range(rungs + 1):
        y = up(step * rung)
        parts.append(svg.line("grid", left + 40, y, right - 16, y))
        parts.append(svg.text("tick-left", left + 35, y + 3.5, f"{step * rung:g}"))
    shapes = sorted(sizes, key=lambda shape: sizes[shape])
    for at, shape in enumerate(shapes):
        x, lower = along(sizes[shape]), 11 * (at % 2)  # neighbours may be close to each other
        parts.append(svg.line("axis", x, base, x, base + 4 + lower))
        parts.append(svg.text("tick", x, base + 15 + lower, f"{sizes[shape] / 1e9:.2g}"))
    parts.append(svg.text("tick", (left + 40 + right - 16) / 2, base + 39, "parameters, 10⁹"))
    for group, tool in enumerate(figures[shapes[0]]):
        points = [(along(sizes[shape]), up(figures[shape][tool])) for shape in shapes]
        dots = [
            svg.circle("own", x, y, f"{shape}: {figures[shape][tool]:.3g}")
            for shape, (x, y) in zip(shapes, points, strict=True)
        ]
        ink = 2 * group
        parts.append(drawing.inked(ink, Markup("").join([svg.polyline("path", points), *dots])))
        parts.append(drawing.inked(ink, svg.rect("own", left + 44 + 110 * group, 26, 9, 9)))
        parts.append(svg.text("label", left + 58 + 110 * group, 34.5, tool))
    return parts


def _step(highest: float) -> float:
    """1, 2 or 5 times a power of ten, so that five to ten of them reach the highest figure."""
    power = 10.0 ** math.floor(math.log10(highest / 4))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * 6 >= highest)


if __name__ == "__main__":
    main()
