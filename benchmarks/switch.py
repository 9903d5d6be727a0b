"""What it costs to keep an adapter unmerged: a switchable graph beside the merged one, in turn.

    python benchmarks/switch.py runs/smollm2-135m/base --precision int8 --precision int4 --rank 16

Of one checkpoint it writes the plain graph, as of a merged model, and the switchable one, with a random
adapter of every weight; no value in them matters to the time. Every round runs the plain graph, the
switchable one without an adapter, and with it, and a ratio is taken within the round. Prints a table for
people, then one JSON line for machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from export.adapter import Factors, write_adapter
from export.architecture import read_architecture
from export.branches import Switchable
from export.graph import Precision, write_graph
from pipeline.evidence.latency import this_machine
from pipeline.fingerprint import fingerprint
from runtime.adapters import load_adapter
from runtime.decoder import Decoder
from runtime.sites import Belonging, Sites, read_sites

FORMS = ("merged", "no adapter", "adapter")


@dataclass(frozen=True)
class Times:
    """Milliseconds of a prompt, and of one new token behind it."""

    prefill: float
    token: float


def main() -> None:
    """Measure every precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a Hugging Face folder")
    parser.add_argument("--precision", action="append", choices=get_args(Precision), required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=256, help="prompt tokens; decoding goes on behind them")
    parser.add_argument("--new", type=int, default=64, help="decoded tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    results = {}
    print(f"{'':6} {'':>12} {'prefill ms':>10} {'token ms':>9} {'prefill':>9} {'decode':>8}")
    for precision in options.precision:
        with tempfile.TemporaryDirectory() as folder:
            decoders = _decoders(options, precision, Path(folder))
            rounds = [
                [_measure(d, options.prompt, options.new) for d in decoders]
                for _ in range(options.rounds + 1)
            ]
        results[precision] = dict(_summary(rounds[1:]))  # the first one warms
        for form, found in results[precision].items():
            print(
                f"{precision:6} {form:>12} {found['prefill_ms']:10.1f} {found['token_ms']:9.3f}"
                f" {found['prefill_ratio']:8.2f}x {found['decode_ratio']:7.3f}x"
            )
    machine = {"machine": this_machine().processor, "threads": options.threads, "rank": options.rank}
    print(json.dumps(machine | results))


def _decoders(options: argparse.Namespace, precision: Precision, folder: Path) -> tuple[Decoder, ...]:
    """Of the plain graph, of the switchable one, and of that with an adapter."""
    context, vocabulary = options.prompt + options.new, read_architecture(options.checkpoint).vocabulary
    digests = dict(fingerprint(options.checkpoint).tensors)
    for name, switchable in (("plain", None), ("switchable", Switchable(options.rank, digests))):
        (folder / name).mkdir()
        write_graph(options.checkpoint, folder / name, precision, 32, context, _ignore, switchable=switchable)
    sites = read_sites(folder / "switchable")
    write_adapter(
        "random", _updates(sites, options.rank), sites, Belonging(digests, "", ""), "float32", folder
    )
    adapter = load_adapter(folder / "random.onnx_adapter", sites, "", "")
    plain, bare = (
        Decoder(folder / name, context, vocabulary, options.threads) for name in ("plain", "switchable")
    )
    return plain, bare, bare.beside(adapter)


def _updates(sites: Sites, rank: int) -> list[Factors]:
    random = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return random.normal(0, 0.01, (rows, columns)).astype(np.float32)

    return [
        Factors(part.tensor, matrix(rank, site.columns), matrix(part.rows, rank))
        for site in sites.sites
        for part in site.parts
    ]


def _measure(decoder: Decoder, prompt: int, new: int) -> Times:
    decoder.reset()
    started = time.perf_counter()
    decoder.feed([5] * prompt)
    filled = time.perf_counter()
    each = []
    for _ in range(new):
        before = time.perf_counter()
        decoder.feed([7])
        each.append(time.perf_counter() - before)
    return Times(1000 * (filled - started), 1000 * statistics.median(each))


def _summary(rounds: list[list[Times]]) -> Iterator[tuple[str, dict[str, float]]]:
    median = statistics.median
    for at, form in enumerate(FORMS):
        yield (
            form,
            {
                "prefill_ms": median(times[at].prefill for times in rounds),
                "token_ms": median(times[at].token for times in rounds),
                "prefill_ratio": median(times[0].prefill / times[at].prefill for times in rounds),
                "decode_ratio": median(times[0].token / times[at].token for times in rounds),
            },
        )


def _ignore(what: str, done: int, total: int) -> None:
    """No progress."""


if __name__ == "__main__":
    main()
