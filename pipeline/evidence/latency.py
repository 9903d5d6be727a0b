"""Latency and memory of the bundle beside the unmerged model, on one machine, in turn.

Each contender lives in its own process. Runs are interleaved (A B C, A B C, …) so that a drifting
clock or a noisy neighbour meets all of them, and ratios are taken within a round. Behind the rounds the
bundle answers further calls while the others sleep: those tell where its own time goes, and give no ratio.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.evidence.contender import Call, Decode, Reply, Request
from pipeline.evidence.own_calls import own_calls
from pipeline.evidence.statistics import median
from pipeline.evidence.task import BUNDLE, UNMERGED
from pipeline.evidence.worker import Worker, module_command
from pipeline.provenance import versions
from runtime.errors import UsageError
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
    """What to start: see `pipeline.evidence.contender`.

    Attributes:
        name: of the contender.
        kind: what `path` is.
        path: a checkpoint or a bundle.
        adapter: of the unmerged model.
        task: of a bundle with several, the one that answers.
    """

    name: str
    kind: Literal["unmerged", "merged", "bundle"]
    path: Path
    adapter: Path | None = None
    task: str | None = None


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
    own: Mapping[str, Sequence[str]],
    max_new_tokens: int,
    threads: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> LatencyReport:
    """Time every contender at every prompt length and on every call, each after a round not counted.

    Args:
        contenders: one of them named `unmerged`, the denominator of every ratio, and one `bundle`.
        prompt_tokens: prompt lengths.
        new_tokens: tokens decoded behind each prompt.
        runs: counted rounds at each length.
        calls: at least one; each is a round, and is answered once by each contender.
        own: language → at least one utterance in it, which the bundle answers behind the rounds.
        max_new_tokens: longest answer to a call.
        threads: for every contender alike.
        progress: told rounds and answers done and in all.

    Raises:
        UsageError: two contenders have one name.
        StageError: a contender stopped or hangs; its last line of output is the reason.
    """
    names = [contender.name for contender in contenders]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f'two contenders are named "{name}"; give each a name of its own')
    total = len(prompt_tokens) * (1 + runs) + 1 + len(calls) + sum(map(len, own.values()))
    steps = itertools.count(1)
    with ExitStack() as stack:
        running = {each.name: stack.enter_context(Running(each, threads)) for each in contenders}

        def rounds(requests: Sequence[Decode | Call]) -> list[Round]:
            found = []
            for request in requests:
                found.append({name: it.ask(request).times_ms for name, it in running.items()})
                progress(next(steps), total)
            return found

        def alone(utterance: str) -> Reply:
            reply = running[BUNDLE].ask(Call(utterance, (), 0, max_new_tokens))
            progress(next(steps), total)
            return reply

        points = []
        for length in prompt_tokens:
            warm, counted = Decode(length, min(_WARM_TOKENS, new_tokens)), Decode(length, new_tokens)
            points.append(_point(counted, rounds([warm, *[counted] * runs])[1:]))
        asked = [Call(call.utterance, call.tokens, call.stop, max_new_tokens) for call in calls]
        first = replace(asked[0], max_new_tokens=min(_WARM_TOKENS, max_new_tokens))
        answered = _call(rounds([first, *asked])[1:])
        parts = {language: own_calls([alone(text) for text in said]) for language, said in own.items()}
        footprints = {name: Footprint(it.load_ms, it.peak_bytes) for name, it in running.items()}
    return LatencyReport(this_machine(), threads, tuple(points), answered, parts, footprints)


class Running:
    """A contender's process. Use as a context manager."""

    def __init__(self, contender: Contender, threads: int) -> None:
        """Start it and wait until it has loaded.

        Raises:
            StageError: it stopped or hangs.
        """
        given = [contender.path, contender.adapter, contender.task]
        self._worker = Worker(
            f'latency: the contender "{contender.name}"',
            module_command(
                "pipeline.evidence.contender",
                [contender.kind, str(threads), *(str(each) for each in given if each is not None)],
            ),
        )
        self.peak_bytes = 0
        self.load_ms = self._reply(self._worker.ready).times_ms[0]

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exception: object) -> None:
        self._worker.__exit__(*exception)

    def ask(self, request: Decode | Call) -> Reply:
        """What the answer to a call took; or a prompt, then each new token.

        Raises:
            StageError: the process stopped or hangs.
        """
        decode, call = (request, None) if isinstance(request, Decode) else (None, request)
        return self._reply(self._worker.ask(json.dumps(asdict(Request(decode, call)))))

    def _reply(self, line: str) -> Reply:
        reply = from_json(Reply, line)
        self.peak_bytes = reply.peak_bytes
        return reply


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
