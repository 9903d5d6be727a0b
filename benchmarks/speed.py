"""Prefill and decode speed of bundles beside llama.cpp, in turn on one machine.

    python benchmarks/speed.py --pair int8=runs/smollm2-135m/bundle:q8_0.gguf \
        --pair int4=runs/smollm2-135m-int4/bundle:q4_0.gguf --llama-bench llama.cpp/build/bin/llama-bench

Each pair is a bundle and a GGUF of the same checkpoint in a weight format of the same class;
benchmarks/README.md says how to make one. Every round runs ours, then llama-bench, and a ratio is taken
within the round. Prints a table for people, then one JSON line for machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline.evidence.contender import Decode
from pipeline.evidence.latency import Contender, Running, this_machine


@dataclass(frozen=True)
class Pair:
    """A bundle and its peer."""

    name: str
    bundle: Path
    gguf: Path


@dataclass(frozen=True)
class Speed:
    """Tokens per second."""

    prefill: float
    decode: float


def main() -> None:
    """Measure every pair."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", action="append", required=True, type=_pair, metavar="NAME=BUNDLE:GGUF")
    parser.add_argument("--llama-bench", required=True, type=Path, help="the llama-bench program")
    parser.add_argument("--prompt", type=int, default=256, help="prompt tokens; decoding goes on behind them")
    parser.add_argument("--new", type=int, default=64, help="decoded tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    results = {}
    print(f"{'':8} {'prefill tok/s':>28} {'decode tok/s':>28}")
    print(f"{'':8} {'ours':>9} {'llama.cpp':>9} {'ratio':>8} {'ours':>9} {'llama.cpp':>9} {'ratio':>8}")
    for pair in options.pair:
        with Running(Contender(pair.name, "bundle", pair.bundle), options.threads) as ours:
            ours.ask(Decode(options.prompt, options.new))  # warm
            rounds = [
                (_ours(ours, options.prompt, options.new), _llama(options, pair.gguf))
                for _ in range(options.rounds)
            ]
        results[pair.name] = _summary(rounds)
        print(_row(pair.name, results[pair.name]))
    machine = this_machine()
    print(
        json.dumps(
            {"machine": machine.processor, "threads": options.threads, "rounds": options.rounds, **results}
        )
    )


def _pair(text: str) -> Pair:
    name, _, rest = text.partition("=")
    bundle, _, gguf = rest.rpartition(":")
    if not (name and bundle and gguf):
        raise argparse.ArgumentTypeError("a pair is NAME=BUNDLE:GGUF")
    return Pair(name, Path(bundle), Path(gguf))


def _ours(running: Running, prompt: int, new: int) -> Speed:
    first, *each = running.ask(Decode(prompt, new))
    return Speed(1000 * prompt / first, 1000 * new / sum(each))


def _llama(options: argparse.Namespace, gguf: Path) -> Speed:
    command = [options.llama_bench, "-m", gguf, "-t", options.threads, "-r", 1, "-o", "json"]
    prefill = _run([*command, "-p", options.prompt, "-n", 0])
    decode = _run([*command, "-p", 0, "-n", options.new, "-d", options.prompt])
    return Speed(prefill, decode)


def _run(command: list[object]) -> float:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def _summary(rounds: list[tuple[Speed, Speed]]) -> dict[str, float]:
    median = statistics.median
    return {
        "prefill": median(ours.prefill for ours, _ in rounds),
        "prefill_peer": median(peer.prefill for _, peer in rounds),
        "prefill_ratio": median(ours.prefill / peer.prefill for ours, peer in rounds),
        "decode": median(ours.decode for ours, _ in rounds),
        "decode_peer": median(peer.decode for _, peer in rounds),
        "decode_ratio": median(ours.decode / peer.decode for ours, peer in rounds),
    }


def _row(name: str, found: dict[str, float]) -> str:
    return (
        f"{name:8} {found['prefill']:9.0f} {found['prefill_peer']:9.0f} {found['prefill_ratio']:7.2f}x"
        f" {found['decode']:9.0f} {found['decode_peer']:9.0f} {found['decode_ratio']:7.2f}x"
    )


if __name__ == "__main__":
    main()
