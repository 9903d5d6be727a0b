"""What rounding costs: bundles, llama.cpp's GGUF files and OpenVINO's models of one checkpoint.

    python benchmarks/quality.py runs/smollm2-135m/merged \
        --bundle int8=runs/smollm2-135m/bundle --bundle int4=bundle-int4 \
        --llama llama/build/bin --gguf q8_0.gguf --gguf q4_0.gguf --gguf-f32 f32.gguf \
        --openvino-python ov/bin/python --openvino ov-int8 --openvino ov-int4 \
        --data $COCKPIT_DATA_DIR/ms_automotive/validation.jsonl \
        --calls runs/smollm2-135m/data/test.jsonl --speed speed.json --chart docs/quality.svg

Bytes, divergence from the checkpoint in float32, exact calls, and the speed that speed.py has measured.
quality_divergence.py and quality_calls.py say how. Prints a table for people, then one JSON line for
machines.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import quality_chart
from quality_calls import exact_calls
from quality_divergence import Windows, divergence, read_windows
from quality_forms import Form, Peers

from pipeline.evidence.latency import this_machine

Figures = dict[str, float]
SPEED = ("prefill", "decode", "call_p50_ms")


def main() -> None:
    """Measure every form."""
    parser = _parser()
    options = parser.parse_args()
    forms = _forms(parser, options)
    speed = _speed(parser, options.speed, forms) if options.speed else {}
    peers = Peers(options.llama, options.gguf_f32, options.openvino_python)
    found: dict[str, Figures] = {form.name: {"bytes": float(form.nbytes)} for form in forms}
    asked: dict[str, object] = {"machine": this_machine().processor, "threads": options.threads}
    if options.data:
        windows = read_windows(options.checkpoint, options.data, options.conversations, options.window)
        if len(windows.conversations) < 2:
            parser.error(
                f"{options.conversations} conversations fill fewer than two windows: give more --data"
            )
        asked |= {"windows": len(windows.conversations), "window": options.window}
        _add(found, _divergence(options.checkpoint, forms, peers, windows, options.threads))
    if options.calls:
        _add(found, exact_calls(forms, peers, options.calls, options.utterances, options.threads))
    _add(found, speed)
    print(_table(found))
    if options.chart:
        quality_chart.draw(options.chart, {form: found[form.name] for form in forms})
    print(json.dumps(asked | found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="what the forms were made of")
    parser.add_argument(
        "--bundle", action="append", default=[], type=_named, metavar="NAME=BUNDLE", help="ours"
    )
    parser.add_argument("--llama", type=Path, help="the folder of llama-perplexity and llama-server")
    parser.add_argument("--gguf", action="append", default=[], type=Path)
    parser.add_argument("--gguf-f32", type=Path, help="the checkpoint as a GGUF of float32")
    parser.add_argument("--openvino-python", type=Path, help="an interpreter that has openvino-genai")
    parser.add_argument(
        "--openvino",
        action="append",
        default=[],
        type=Path,
        help="a folder of optimum-cli export openvino",
    )
    parser.add_argument(
        "--data", action="append", default=[], type=Path, help="records of the text, tools.json beside"
    )
    parser.add_argument(
        "--conversations", type=int, default=300, help="of the text; one of each file in turn"
    )
    parser.add_argument("--window", type=int, default=512, help="tokens")
    parser.add_argument("--calls", type=Path, help="records to answer; none unless set")
    parser.add_argument("--utterances", type=int, help="answer so many, spread over the file, instead of all")
    parser.add_argument("--speed", type=Path, help="what speed.py printed of these models")
    parser.add_argument("--chart", type=Path, help="an SVG to write; needs --data")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def _named(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not (name and path):
        raise argparse.ArgumentTypeError("a bundle is NAME=PATH")
    return name, Path(path)


def _forms(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Form]:
    """All forms, named as speed.py names them, so that its figures can be put beside."""
    if not options.bundle:
        parser.error("give at least one --bundle: its prompts are what everybody is asked")
    if options.gguf and options.llama is None:
        parser.error("--gguf needs --llama")
    if options.gguf and options.data and options.gguf_f32 is None:
        parser.error("--gguf with --data needs --gguf-f32")
    if options.openvino and options.openvino_python is None:
        parser.error("--openvino needs --openvino-python")
    if options.chart and not options.data:
        parser.error("--chart draws the divergence: it needs --data")
    forms = [Form("ours", name, path) for name, path in options.bundle]
    forms += [Form("llama.cpp", path.stem, path) for path in options.gguf]
    forms += [Form("OpenVINO", path.stem, path) for path in options.openvino]
    if missing := [str(form.path) for form in forms if not form.path.exists()]:
        parser.error(f"there is no {', no '.join(missing)}")
    names = [form.name for form in forms]
    if twice := {name for name in names if names.count(name) > 1}:
        parser.error(f"two forms would have one name: {', '.join(sorted(twice))}")
    return forms


def _speed(parser: argparse.ArgumentParser, file: Path, forms: Sequence[Form]) -> dict[str, Figures]:
    """Of each form what one run of speed.py has found."""
    printed = json.loads(file.read_text(encoding="utf-8").strip().splitlines()[-1])
    if missing := [form.name for form in forms if form.name not in printed]:
        parser.error(f"{file} has no figures of {', '.join(missing)}: run speed.py with them")
    return {
        form.name: {key: printed[form.name][key] for key in SPEED if key in printed[form.name]}
        for form in forms
    }


def _divergence(
    checkpoint: Path, forms: Sequence[Form], peers: Peers, windows: Windows, threads: int
) -> dict[str, Figures]:
    with tempfile.TemporaryDirectory() as scratch:
        return divergence(checkpoint, forms, peers, windows, threads, Path(scratch))


def _add(found: dict[str, Figures], more: Mapping[str, Figures]) -> None:
    for name, figures in more.items():
        found[name] |= figures


COLUMNS = (
    ("MB", "bytes", 1e-6, "8.1f"),
    ("mean KL", "kl_mean", 1.0, "9.5f"),
    ("99 % KL", "kl_p99", 1.0, "9.4f"),
    ("same token %", "top1", 100.0, "13.2f"),
    ("exact calls %", "exact_call", 100.0, "14.1f"),
    ("low", "exact_call_low", 100.0, "6.1f"),
    ("high", "exact_call_high", 100.0, "6.1f"),
    ("prefill tok/s", "prefill", 1.0, "14.0f"),
    ("decode tok/s", "decode", 1.0, "13.0f"),
    ("call ms", "call_p50_ms", 1.0, "8.1f"),
)


def _table(found: Mapping[str, Figures]) -> str:
    """The columns that somebody has a figure for."""
    shown = [column for column in COLUMNS if any(column[1] in figures for figures in found.values())]
    rows = [f"{'':24}" + "".join(f"{head:>{_width(form)}}" for head, _, _, form in shown)]
    for name, figures in found.items():
        cells = [
            f"{figures[key] * factor:{form}}" if key in figures else " " * _width(form)
            for _, key, factor, form in shown
        ]
        rows.append(f"{name:24}" + "".join(cells))
    return "\n".join(rows)


def _width(form: str) -> int:
    return int(form.partition(".")[0])


if __name__ == "__main__":
    main()
