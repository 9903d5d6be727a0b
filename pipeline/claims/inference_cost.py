"""Speed and memory of inference in torch: base, merged and unmerged, in turn, each in its own process."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipeline.claims import guide
from pipeline.claims.finding import Finding, exactly, measured
from pipeline.evidence.contender import Decode
from pipeline.evidence.latency import Contender, Running
from pipeline.evidence.report.figures import milliseconds, size
from pipeline.evidence.statistics import median
from runtime.report import Estimate

ROUNDS = 9


@dataclass(frozen=True)
class Speed:
    """Of one model, one number a round: milliseconds of the prompt, and of each token behind it."""

    prefill: tuple[float, ...]
    token: tuple[float, ...]
    peak_bytes: int


@dataclass(frozen=True)
class Speeds:
    """Of the three models."""

    base: Speed
    merged: Speed
    unmerged: Speed


def measure_inference_cost(
    base: Path,
    adapter: Path,
    merged: Path,
    request: Decode,
    threads: int,
    progress: Callable[[int, int], None],
) -> Speeds:
    """Time every model in turn.

    Args:
        base: the base checkpoint.
        adapter: its adapter.
        merged: the checkpoint of both.
        request: length of the prompt, and tokens behind it.
        threads: of each process.
        progress: told rounds done and in all.

    Raises:
        StageError: a process stopped or hangs; its last line of output is the reason.
    """
    contenders = (
        Contender("base", "merged", base),  # a checkpoint without an adapter
        Contender("merged", "merged", merged),
        Contender("unmerged", "unmerged", base, adapter),
    )
    times: dict[str, list[tuple[float, ...]]] = {contender.name: [] for contender in contenders}
    with ExitStack() as stack:
        running = {each.name: stack.enter_context(Running(each, threads)) for each in contenders}
        for turn in range(1 + ROUNDS):
            # Back and forth, so that nobody always comes after the same other.
            for name in sorted(running, reverse=bool(turn % 2)):
                times[name].append(running[name].ask(request).times_ms)
            progress(turn + 1, 1 + ROUNDS)
        speeds = {name: _speed(times[name][1:], each.peak_bytes) for name, each in running.items()}
    return Speeds(speeds["base"], speeds["merged"], speeds["unmerged"])


def _speed(rounds: Sequence[tuple[float, ...]], peak_bytes: int) -> Speed:
    return Speed(
        prefill=tuple(times[0] for times in rounds),
        token=tuple(statistics.median(times[1:]) for times in rounds),
        peak_bytes=peak_bytes,
    )


def inference_findings(speeds: Speeds, request: Decode) -> list[Finding]:
    """What the guide says of inference, merged and not."""
    base, merged, unmerged = speeds.base, speeds.merged, speeds.unmerged
    behind = f"behind {request.prompt_tokens} tokens"
    prompt = f"{request.prompt_tokens} tokens"
    return [
        measured(
            guide.SLOWER_PREFILL,
            _ratio(unmerged.prefill, merged.prefill),
            f"{prompt}: {_middle(unmerged.prefill)} over {_middle(merged.prefill)}, PEFT and transformers",
        ),
        measured(
            guide.SLOWER_TOKEN,
            _ratio(unmerged.token, merged.token),
            f"{behind}: {_middle(unmerged.token)} over {_middle(merged.token)}, PEFT and transformers",
        ),
        measured(
            guide.PEAK_HERE,
            exactly(unmerged.peak_bytes / merged.peak_bytes),
            f"peak of the process: {size(unmerged.peak_bytes)} over {size(merged.peak_bytes)}",
        ),
        measured(
            guide.AS_BASE_PREFILL,
            _ratio(merged.prefill, base.prefill),
            f"{prompt}: {_middle(merged.prefill)} over {_middle(base.prefill)}; within 5 % counts as equal",
        ),
        measured(
            guide.AS_BASE_TOKEN,
            _ratio(merged.token, base.token),
            f"{behind}: {_middle(merged.token)} over {_middle(base.token)}; within 5 % counts as equal",
        ),
    ]


def _ratio(first: Sequence[float], second: Sequence[float]) -> Estimate:
    return median([a / b for a, b in zip(first, second, strict=True)])


def _middle(times: Sequence[float]) -> str:
    return milliseconds(statistics.median(times))
