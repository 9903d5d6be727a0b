"""Where the time of a step goes: every operator of a bundle's graph, in a prompt and in a decoded token.

    python benchmarks/operators.py runs/smollm2-135m/bundle --prompt 256 --new 32

ONNX Runtime's own profiler, which adds one to three microseconds to each node: read the shares, and compare
sums with the time of the run without it. Prints a table for people in Markdown, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from pipeline.evidence.latency import this_machine
from runtime.decoder import Decoder
from runtime.manifest import verify

_PRODUCTS = ("MatMulNBits", "DynamicQuantizeMatMul", "MatMul", "Gemm")
_PARTS = ("qkv", "gate_up", "logits", "mlp.output", "attention.output")


@dataclass(frozen=True)
class Share:
    """Of one operator in one run: how many nodes, and the median over runs of their sum in microseconds."""

    operator: str
    nodes: int
    microseconds: float


def main() -> None:
    """Profile a bundle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", type=int, default=256, help="prompt tokens; decoding goes on behind them")
    parser.add_argument("--new", type=int, default=32, help="decoded tokens of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    manifest = verify(options.bundle)
    context, vocabulary = manifest.limits.context, manifest.limits.vocabulary
    prompt = np.random.default_rng(0).integers(0, vocabulary, options.prompt).tolist()
    decoder = Decoder(options.bundle, context, vocabulary, options.threads)
    bare = _times(decoder, prompt, options.new, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        runs = _profiled(options, context, vocabulary, prompt, Path(folder))
    each = 1 + options.new
    counted = runs[each:]  # the first round warms
    shares = {
        "prefill": _shares(counted[::each]),
        "decode": _shares([run for at, run in enumerate(counted) if at % each]),
    }
    print(f"{manifest.name}, {manifest.precision}, {this_machine().processor}, {options.threads} threads\n")
    for phase, found in shares.items():
        _print(phase, found, bare[phase])
    print(
        json.dumps(
            {"machine": this_machine().processor, "threads": options.threads, "ms": bare}
            | {phase: [asdict(share) for share in found] for phase, found in shares.items()}
        )
    )


def _times(decoder: Decoder, prompt: Sequence[int], new: int, rounds: int) -> dict[str, float]:
    """Milliseconds of the prompt and of a token, without the profiler."""
    prefill: list[float] = []
    token: list[float] = []
    for _ in range(rounds + 1):
        decoder.reset()
        for step in (prompt, *[[7]] * new):
            started = time.perf_counter()
            decoder.feed(step)
            (token if len(step) == 1 else prefill).append(1000 * (time.perf_counter() - started))
    return {"prefill": statistics.median(prefill[1:]), "decode": statistics.median(token[new:])}


def _profiled(
    options: argparse.Namespace, context: int, vocabulary: int, prompt: Sequence[int], folder: Path
) -> list[dict[str, list[int]]]:
    """Operator → microseconds of each of its nodes, for every run in order."""
    plain = onnxruntime.SessionOptions

    class Profiling(plain):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.enable_profiling = True
            self.profile_file_prefix = str(folder / "profile")

    onnxruntime.SessionOptions = Profiling
    try:
        decoder = Decoder(options.bundle, context, vocabulary, options.threads)
    finally:
        onnxruntime.SessionOptions = plain
    _times(decoder, prompt, options.new, options.rounds)
    events = json.loads(Path(decoder._model.session.end_profiling()).read_text(encoding="utf-8"))
    return list(_by_run(events))


def _by_run(events: Sequence[dict[str, object]]) -> Iterator[dict[str, list[int]]]:
    starts = sorted(_number(event["ts"]) for event in events if event["name"] == "model_run")
    runs: list[dict[str, list[int]]] = [defaultdict(list) for _ in starts]
    for event in events:
        name, arguments = str(event["name"]), event.get("args")
        if not name.endswith("_kernel_time") or not isinstance(arguments, dict):
            continue
        operator = str(arguments["op_name"])
        if operator in _PRODUCTS:
            operator += next((f" {part}" for part in _PARTS if part in name), "")
        runs[bisect_right(starts, _number(event["ts"])) - 1][operator].append(_number(event["dur"]))
    yield from runs


def _shares(runs: Sequence[dict[str, list[int]]]) -> list[Share]:
    found = [
        Share(operator, len(nodes), statistics.median(sum(run[operator]) for run in runs))
        for operator, nodes in runs[0].items()
    ]
    return sorted(found, key=lambda share: -share.microseconds)


def _print(phase: str, shares: Sequence[Share], bare: float) -> None:
    total = sum(share.microseconds for share in shares)
    print(f"{phase}: {bare:.2f} ms without the profiler, {total / 1000:.2f} ms in its nodes\n")
    print("| operator | nodes | µs | share |\n|---|---|---|---|")
    for share in shares:
        print(
            f"| {share.operator} | {share.nodes} | {share.microseconds:.0f} "
            f"| {100 * share.microseconds / total:.1f} % |"
        )
    print()


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


if __name__ == "__main__":
    main()
