"""Latency and memory of the bundle beside the unmerged model, on one machine, in turn.

Each contender lives in its own process. Runs are interleaved (A B C, A B C, …) so that a drifting
clock or a noisy neighbour meets all of them, and ratios are taken within a round.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evidence.statistics import median
from pipeline.provenance import versions
from runtime.errors import StageError
from runtime.report import Distribution, Estimate, Footprint, LatencyPoint, LatencyReport, Machine

UNMERGED = "unmerged"
_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


@dataclass(frozen=True)
class Contender:
    """What to start: see `pipeline.evidence.contender`."""

    name: str
    kind: str
    path: Path
    adapter: Path | None = None


def measure_latency(
    contenders: Sequence[Contender],
    prompt_tokens: Sequence[int],
    new_tokens: int,
    runs: int,
    threads: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatencyReport:
    """Time every contender at every prompt length, `runs` rounds after one that is not counted.

    Args:
        contenders: one of them named `unmerged`, the denominator of every ratio.
        prompt_tokens: prompt lengths.
        new_tokens: tokens decoded behind each prompt.
        runs: counted rounds.
        threads: for every contender alike.
        progress: told rounds done and in all.

    Raises:
        StageError: a contender stopped; its last line of output is the reason.
    """
    total, done = len(prompt_tokens) * (runs + 1), 0
    rounds: dict[int, list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        running = {c.name: stack.enter_context(Running(c, threads)) for c in contenders}
        for length in prompt_tokens:
            rounds[length] = []
            for _ in range(runs + 1):
                rounds[length].append({name: it.ask(length, new_tokens) for name, it in running.items()})
                done += 1
                progress(done, total)
        footprints = {name: Footprint(it.load_ms, it.peak_bytes) for name, it in running.items()}
    return LatencyReport(
        machine=this_machine(),
        threads=threads,
        points=tuple(_point(length, new_tokens, found[1:]) for length, found in rounds.items()),
        footprints=footprints,
    )


class Running:
    """A contender's process."""

    def __init__(self, contender: Contender, threads: int) -> None:
        self._contender = contender
        paths = [contender.path, *([contender.adapter] if contender.adapter else [])]
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pipeline.evidence.contender",
                contender.kind,
                str(threads),
                *map(str, paths),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # Wait for the load to end: two models loading at once would time each other.
        self.load_ms = float(self._read()["load_ms"])
        self.peak_bytes = 0

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        """One measurement: `ttft_ms` and a list `token_ms`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{prompt_tokens} {new_tokens}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; reading below says why
        answer = self._read()
        self.peak_bytes = int(answer["peak_bytes"])
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._process.communicate()[1].strip().splitlines()
            reason = said[-1] if said else f"exit code {self._process.returncode}"
            raise StageError(f'latency: the contender "{self._contender.name}" stopped: {reason}')
        answer: dict[str, Any] = json.loads(line)
        return answer


def _point(length: int, new_tokens: int, rounds: Sequence[Mapping[str, Any]]) -> LatencyPoint:
    names = list(rounds[0])
    ttft = {name: [float(found[name]["ttft_ms"]) for found in rounds] for name in names}
    each = {name: [list(map(float, found[name]["token_ms"])) for found in rounds] for name in names}
    middle = {name: [float(np.median(run)) for run in runs] for name, runs in each.items()}
    return LatencyPoint(
        prompt_tokens=length,
        new_tokens=new_tokens,
        ttft={name: _distribution(ttft[name]) for name in names},
        token={name: _distribution([value for run in each[name] for value in run]) for name in names},
        ttft_ratio={name: _ratio(ttft[name], ttft[UNMERGED]) for name in names if name != UNMERGED},
        token_ratio={name: _ratio(middle[name], middle[UNMERGED]) for name in names if name != UNMERGED},
    )


def _ratio(times: Sequence[float], reference: Sequence[float]) -> Estimate:
    return median([a / b for a, b in zip(times, reference, strict=True)])


def _distribution(values: Sequence[float]) -> Distribution:
    p50, p95, p99 = (float(value) for value in np.quantile(values, (0.5, 0.95, 0.99)))
    return Distribution(len(values), p50, p95, p99)


def this_machine() -> Machine:
    """What a latency figure depends on here."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    fields = {
        key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon
    }
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Machine(
        processor=fields.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        features=tuple(feature for feature in _FEATURES if feature in flags),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        versions={
            "python": platform.python_version(),
            **versions(("onnxruntime", "torch", "transformers", "peft")),
        },
    )
