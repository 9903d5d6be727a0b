"""Latency and memory of the bundle beside the unmerged model, on one machine, in turn.

Each contender lives in its own process. Runs are interleaved (A B C, A B C, …) so that a drifting
clock or a noisy neighbour meets all of them, and ratios are taken within a round.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.evidence.contender import Call, Decode, Reply, Request
from pipeline.evidence.statistics import median
from pipeline.evidence.task import UNMERGED
from pipeline.provenance import versions
from runtime.errors import StageError, UsageError
from runtime.report import (
    CallLatency,
    Estimate,
    Footprint,
    LatencyPoint,
    LatencyReport,
    Machine,
    distribution,
    from_json,
)

_WARM_TOKENS = 4
"""New tokens of what is not counted: enough to have run every path once."""
PATIENCE_S = 600.0
"""Longest wait for a model to load or for one reply: what takes longer hangs."""
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

Round = dict[str, tuple[float, ...]]
"""Contender → what it replied to one request, in milliseconds."""


@dataclass(frozen=True)
class Contender:
    """What to start: see `pipeline.evidence.contender`."""

    name: str
    kind: Literal["unmerged", "merged", "bundle"]
    path: Path
    adapter: Path | None = None


@dataclass(frozen=True)
class CallPrompt:
    """One request to answer whole.

    Attributes:
        utterance: what a bundle is given.
        tokens: the prompt that it is rendered to, which torch is given.
        stop: the token that ends torch's answer.
    """

    utterance: str
    tokens: tuple[int, ...]
    stop: int


def measure_latency(
    contenders: Sequence[Contender],
    prompt_tokens: Sequence[int],
    new_tokens: int,
    runs: int,
    calls: Sequence[CallPrompt],
    max_new_tokens: int,
    threads: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatencyReport:
    """Time every contender at every prompt length and on every call, each after a round not counted.

    Args:
        contenders: one of them named `unmerged`, the denominator of every ratio.
        prompt_tokens: prompt lengths.
        new_tokens: tokens decoded behind each prompt.
        runs: counted rounds at each length.
        calls: at least one; each is a round, and is answered once by each contender.
        max_new_tokens: longest answer to a call.
        threads: for every contender alike.
        progress: told rounds done and in all.

    Raises:
        UsageError: two contenders have one name.
        StageError: a contender stopped or hangs; its last line of output is the reason.
    """
    names = [contender.name for contender in contenders]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f'two contenders are named "{name}"; give each a name of its own')
    steps, total = itertools.count(1), len(prompt_tokens) * (1 + runs) + 1 + len(calls)
    with ExitStack() as stack:
        running = {each.name: stack.enter_context(Running(each, threads)) for each in contenders}

        def rounds(requests: Sequence[Decode | Call]) -> list[Round]:
            found = []
            for request in requests:
                found.append({name: it.ask(request) for name, it in running.items()})
                progress(next(steps), total)
            return found

        points = []
        for length in prompt_tokens:
            warm, counted = Decode(length, min(_WARM_TOKENS, new_tokens)), Decode(length, new_tokens)
            points.append(_point(counted, rounds([warm, *[counted] * runs])[1:]))
        asked = [Call(call.utterance, call.tokens, call.stop, max_new_tokens) for call in calls]
        first = replace(asked[0], max_new_tokens=min(_WARM_TOKENS, max_new_tokens))
        answered = _call(rounds([first, *asked])[1:])
        footprints = {name: Footprint(it.load_ms, it.peak_bytes) for name, it in running.items()}
    return LatencyReport(this_machine(), threads, tuple(points), answered, footprints)


class Running:
    """A contender's process."""

    def __init__(self, contender: Contender, threads: int) -> None:
        """Start it and wait until it has loaded: two models loading at once would time each other."""
        paths = [contender.path, *([contender.adapter] if contender.adapter else [])]
        module = "pipeline.evidence.contender"
        command = [sys.executable, "-m", module, contender.kind, str(threads), *map(str, paths)]
        self._name = contender.name
        self.peak_bytes = 0
        with ExitStack() as opening:
            # A file, since a pipe that nobody reads would block whoever fills it.
            self._said = opening.enter_context(
                tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
            )
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
            )
            opening.callback(self._stop)
            self.load_ms = self._reply()[0]
            self._open = opening.pop_all()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def ask(self, request: Decode | Call) -> tuple[float, ...]:
        """Milliseconds of the answer to a call; or those of a prompt, then of each new token.

        Raises:
            StageError: the process stopped or hangs.
        """
        decode, call = (request, None) if isinstance(request, Decode) else (None, request)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asdict(Request(decode, call))) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; reading below says why
        return self._reply()

    def _reply(self) -> tuple[float, ...]:
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], PATIENCE_S)[0]:
            raise self._failure(f"has not answered for {PATIENCE_S:g} s")
        line = output.readline()
        if not line:
            raise self._failure(_ending(self._process.wait()))
        reply = from_json(Reply, line)
        self.peak_bytes = reply.peak_bytes
        return reply.times_ms

    def _failure(self, what: str) -> StageError:
        self._said.seek(0)
        last = (self._said.read().strip() or "it said nothing").splitlines()[-1]
        return StageError(f'latency: the contender "{self._name}" {what}: {last}')

    def _stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def _ending(code: int) -> str:
    """A process killed from outside has no last word; the kernel kills the largest when memory is short."""
    if code == -signal.SIGKILL:
        return "was killed, as happens when memory runs out"
    return "stopped"


def _point(request: Decode, rounds: Sequence[Round]) -> LatencyPoint:
    ttft = {name: [times[name][0] for times in rounds] for name in rounds[0]}
    each = {name: [times[name][1:] for times in rounds] for name in rounds[0]}
    middle = {name: [statistics.median(run) for run in runs] for name, runs in each.items()}
    return LatencyPoint(
        prompt_tokens=request.prompt_tokens,
        new_tokens=request.new_tokens,
        ttft={name: distribution(times) for name, times in ttft.items()},
        token={name: distribution([time for run in runs for time in run]) for name, runs in each.items()},
        ttft_ratio=_ratios(ttft),
        token_ratio=_ratios(middle),
    )


def _call(rounds: Sequence[Round]) -> CallLatency:
    times = {name: [found[name][0] for found in rounds] for name in rounds[0]}
    return CallLatency(
        utterances=len(rounds),
        times={name: distribution(taken) for name, taken in times.items()},
        ratio=_ratios(times),
    )


def _ratios(times: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    """Each contender's times over the unmerged model's of the same rounds."""
    reference = times[UNMERGED]
    return {
        name: median([a / b for a, b in zip(taken, reference, strict=True)])
        for name, taken in times.items()
        if name != UNMERGED
    }


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
            **versions(("llguidance", "numpy", "onnxruntime", "peft", "tokenizers", "torch", "transformers")),
        },
    )
