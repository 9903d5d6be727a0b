"""Bundles beside llama.cpp, OpenVINO GenAI and onnxruntime-genai, in turn on one machine.

    python benchmarks/speed.py --bundle int8=runs/smollm2-135m/bundle --bundle int4=bundle-int4 \
        --llama llama/build/bin --gguf int8=q8_0.gguf --gguf int4=q4_0.gguf --gguf int4=q4_k_m.gguf \
        --openvino-python ov/bin/python --openvino int8=ov-int8 --openvino int4=ov-int4 \
        --genai-python genai/bin/python --genai int4=genai-int4 \
        --utterances $COCKPIT_DATA_DIR/ms_automotive/validation.jsonl \
        --utterances $COCKPIT_DATA_DIR/mac_slu/validation.jsonl --chart docs/speed.svg

Every model is of one checkpoint; what stands before `=` is the class of its weights, which is compared with
the bundle of that class. Each lives in a process of its own. Every round asks all of them in turn, and a
ratio is taken within the round. Prints a table for people, then one JSON line for machines;
benchmarks/README.md says how to make the models and what is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import speed_calls
import speed_chart
from speed_contenders import Bundle, Called, CallTask, Contender, Library, LlamaCpp, Speed

from pipeline.evidence.latency import this_machine

QUIET_S = 0.2
HEAD = (
    "   ×: how many times as fast ours of the same class is\n"
    f"{'':30}{'prefill tok/s':>14} {'×':>6} {'decode tok/s':>13} {'×':>6} {'load ms':>8} {'peak MB':>8}"
)


@dataclass(frozen=True)
class Entry:
    """Who takes part: `peer_of` is the bundle that it is compared with."""

    name: str
    peer_of: str | None
    start: Callable[[], Contender]


@dataclass(frozen=True)
class Taken:
    """What one contender did: a `Speed` for each round, what each call took, and its process."""

    speeds: list[Speed]
    calls: list[Called]
    loads: list[float]
    peak: int


def main() -> None:
    """Measure everybody."""
    options = _options()
    entries = _entries(options)
    calls = []
    if options.utterances:
        calls = speed_calls.call_tasks(
            options.bundle[0][1], speed_calls.spread(options.utterances, options.calls)
        )
    taken = _measure(entries, calls, options)
    found = {entry.name: _figures(taken[entry.name]) | _ratios(entry, taken) for entry in entries}
    answered = {
        entry.name: speed_calls.by_set(
            calls, taken[entry.name].calls, taken[entry.peer_of].calls if entry.peer_of else None
        )
        for entry in entries
    }
    print(HEAD)
    for name, figures in found.items():
        print(_row(name, figures))
    for line in speed_calls.table(answered):
        print(line)
    if options.chart:
        note = f"{this_machine().processor}, {options.threads} threads"
        speed_chart.draw(options.chart, found, answered, note)
    asked = {name: getattr(options, name) for name in ("threads", "prompt", "new", "rounds")}
    told = {
        name: {**figures, "calls": {key: asdict(one) for key, one in answered[name].items()}}
        for name, figures in found.items()
    }
    print(json.dumps({"machine": this_machine().processor} | asked | {"calls": len(calls)} | told))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def models(flag: str, what: str, required: bool = False) -> None:
        parser.add_argument(
            flag, action="append", default=[], type=_model, required=required, metavar="CLASS=PATH", help=what
        )

    models("--bundle", "a bundle of ours", required=True)
    parser.add_argument("--llama", type=Path, help="the folder of llama-bench and llama-server")
    models("--gguf", "a GGUF for llama.cpp")
    parser.add_argument("--openvino-python", type=Path, help="an interpreter that has openvino-genai")
    models("--openvino", "a folder of optimum-cli export openvino")
    parser.add_argument("--genai-python", type=Path, help="an interpreter that has onnxruntime-genai")
    models("--genai", "a folder of onnxruntime-genai's builder, or a bundle of ours")
    parser.add_argument(
        "--utterances",
        action="append",
        default=[],
        type=Path,
        help="JSON lines to be answered with calls, a set in a folder of its name; none unless set",
    )
    parser.add_argument("--calls", type=int, default=40, help="of each set, how many")
    parser.add_argument("--prompt", type=int, default=256, help="prompt tokens; decoding goes on behind them")
    parser.add_argument("--new", type=int, default=64, help="decoded tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--loads", type=int, default=3, help="how often each is started")
    parser.add_argument("--chart", type=Path, help="an SVG to write")
    options = parser.parse_args()
    for models_of, means in (("gguf", "llama"), ("openvino", "openvino_python"), ("genai", "genai_python")):
        if getattr(options, models_of) and getattr(options, means) is None:
            parser.error(f"--{models_of} needs --{means.replace('_', '-')}")
    ours = [kind for kind, _ in options.bundle]
    for kind, path in (*options.gguf, *options.openvino, *options.genai):
        if ours.count(kind) != 1:
            parser.error(f"{path} is {kind}: it needs exactly one --bundle {kind}=… to be compared with")
    return options


def _model(text: str) -> tuple[str, Path]:
    kind, _, path = text.partition("=")
    if not (kind and path and Path(path).exists()):
        raise argparse.ArgumentTypeError(f"{text!r} is not CLASS=PATH of something that exists")
    return kind, Path(path)


def _entries(options: argparse.Namespace) -> list[Entry]:
    """In the order of the table: each bundle, then its peers."""
    entries = []
    for kind, bundle in options.bundle:
        end = (bundle / "tools.json", options.threads)
        openvino, genai = (
            partial(Library, python, script)
            for python, script in (
                (options.openvino_python, "speed_openvino.py"),
                (options.genai_python, "speed_genai.py"),
            )
        )
        ours = f"ours {kind}"
        entries.append(Entry(ours, None, partial(Bundle, bundle, options.threads)))
        entries += [
            Entry(f"{name} {path.stem}", ours, partial(start, path, *end))
            for name, start, models in (
                ("llama.cpp", partial(LlamaCpp, options.llama), options.gguf),
                ("OpenVINO", openvino, options.openvino),
                ("ORT GenAI", genai, options.genai),
            )
            for of, path in models
            if of == kind
        ]
    names = [entry.name for entry in entries]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SystemExit(f"these would have one name, rename the files: {', '.join(sorted(twice))}")
    return entries


def _measure(
    entries: Sequence[Entry], calls: Sequence[CallTask], options: argparse.Namespace
) -> dict[str, Taken]:
    loads: dict[str, list[float]] = {entry.name: [] for entry in entries}
    for _ in range(options.loads - 1):
        for entry in entries:
            started = entry.start()
            loads[entry.name].append(started.load_ms)
            started.close()
    with ExitStack() as stack:
        running = {}
        for entry in entries:
            running[entry.name] = entry.start()
            stack.callback(running[entry.name].close)
            loads[entry.name].append(running[entry.name].load_ms)

        speeds, answered = [], []
        for _ in range(options.rounds + 1):
            speeds.append([_quiet(it).decode(options.prompt, options.new) for it in running.values()])
        for task in (*calls[:1], *calls):
            answered.append([_quiet(it).call(task) for it in running.values()])
        return {
            name: Taken(
                [round_[at] for round_ in speeds[1:]],  # the first of each warms
                [round_[at] for round_ in answered[1:]],
                loads[name],
                it.peak_bytes(),
            )
            for at, (name, it) in enumerate(running.items())
        }


def _quiet(contender: Contender) -> Contender:
    """A library's threads wait in a loop for a while after its work; nobody is timed meanwhile."""
    time.sleep(QUIET_S)
    return contender


def _figures(taken: Taken) -> dict[str, float]:
    """Tokens per second, milliseconds, bytes."""
    return {
        "prefill": statistics.median(speed.prefill for speed in taken.speeds),
        "decode": statistics.median(speed.decode for speed in taken.speeds),
        "load_ms": statistics.median(taken.loads),
        "peak_bytes": float(taken.peak),
    }


def _ratios(entry: Entry, taken: dict[str, Taken]) -> dict[str, float]:
    """How many times as fast as the peer ours is, round by round."""
    if entry.peer_of is None:
        return {}
    ours, peer = taken[entry.peer_of], taken[entry.name]
    rounds = list(zip(ours.speeds, peer.speeds, strict=True))
    return {
        "prefill_ratio": statistics.median(a.prefill / b.prefill for a, b in rounds),
        "decode_ratio": statistics.median(a.decode / b.decode for a, b in rounds),
    }


def _row(name: str, found: dict[str, float]) -> str:
    def ratio(key: str) -> str:
        return f"{found[key]:6.2f}" if key in found else " " * 6

    return (
        f"{name:30}{found['prefill']:14.0f} {ratio('prefill_ratio')}"
        f" {found['decode']:13.0f} {ratio('decode_ratio')}"
        f" {found['load_ms']:8.0f} {found['peak_bytes'] / 1e6:8.0f}"
    )


if __name__ == "__main__":
    main()
