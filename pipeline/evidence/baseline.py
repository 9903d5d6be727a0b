"""A candidate against the report of an earlier release: pure functions. No torch, no files, no clock.

A growth is today's figure over the baseline's. Its interval is the widest the two intervals allow: the
lowest figure of today over the highest of the baseline, and the other way round. The two were measured
apart, so nothing pairs them, and the result is on the safe side of 95 %.

Times are compared as ratios over the unmerged model's, which ran in the same rounds: what slows the whole
machine for a while slows both, and cancels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from pipeline.evidence.statistics import mean
from pipeline.evidence.task import BUNDLE
from pipeline.evidence.thresholds import FEWEST_ROUNDS, Limits
from runtime.errors import UsageError
from runtime.report import Check, Estimate, LatencyReport, Machine, ParityReport, Report, TaskReport

_ROUNDING_KL = 1e-7
"""Mean KL that the order of float32 sums alone makes, in nats: twice next to nothing is no growth."""


def against_baseline(
    baseline: Report, parity: ParityReport, task: TaskReport, latency: LatencyReport, limits: Limits
) -> list[Check]:
    """Judge a candidate's growth and loss since the baseline.

    What only one of the two reports measured is an inconclusive check.

    Args:
        baseline: of the last release, which `refuse_incomparable` let pass.
        parity: of the candidate.
        task: of the candidate; utterances that the baseline answered too are compared in pairs.
        latency: of the candidate.
        limits: the thresholds in force.
    """
    then = "over the baseline's"
    kl = _growth(_kl(parity), _kl(baseline.parity))
    call = _growth(latency.call.ratio.get(BUNDLE), baseline.latency.call.ratio.get(BUNDLE))
    now_peak, then_peak = (_peak(report) for report in (latency, baseline.latency))
    peak = now_peak / then_peak if now_peak and then_peak else None
    return [
        limits.at_most("max_kl_growth", f"mean KL from the unmerged model, {then}", kl),
        limits.at_most(
            "max_exact_call_loss", "exact calls lost since the baseline", _loss(baseline.task, task)
        ),
        *_points(baseline.latency, latency, limits),
        limits.at_most("max_call_growth", f"time of a whole answer, {then}", call, fewest=FEWEST_ROUNDS),
        limits.at_most("max_peak_growth", f"peak memory, {then}", peak),
    ]


def refuse_incomparable(baseline: Report, machine: Machine, threads: int) -> None:
    """Refuse a baseline whose times and memory were not measured as the candidate's will be.

    The kernel's release and the size of memory are no reason: a security update or another host of the same
    kind would otherwise cost a team its baseline, and what they change meets the unmerged model too.

    Args:
        baseline: of the last release.
        machine: this one.
        threads: that every contender will use.

    Raises:
        UsageError: processor, features, cores, operating system, threads or a library's version differ; the
            message lists every difference.
    """
    differences = list(_differences(baseline.latency, machine, threads))
    if differences:
        raise UsageError(
            f'the baseline "{baseline.name}" is not comparable: {"; ".join(differences)}; validate that '
            "release again here and as today, or leave the baseline out"
        )


def _differences(baseline: LatencyReport, machine: Machine, threads: int) -> Iterator[str]:
    """Each difference that makes times incomparable, then and now."""
    was = baseline.machine
    pairs = {
        "processor": (was.processor, machine.processor),
        "processor features": (_listed(was.features), _listed(machine.features)),
        "cores": (was.cores, machine.cores),
        "system": (_without_release(was.system), _without_release(machine.system)),
        "threads": (baseline.threads, threads),
        **{
            name: (was.versions.get(name, "absent"), machine.versions.get(name, "absent"))
            for name in sorted({*was.versions, *machine.versions})
        },
    }
    for name, (then, now) in pairs.items():
        if then != now:
            yield f"{name} {then} then, {now} now"


def _listed(features: tuple[str, ...]) -> str:
    return "+".join(sorted(features)) or "none"


def _without_release(system: str) -> str:
    """`Linux x86_64` of `Linux 6.1.0 x86_64`."""
    first, *_, last = system.split() or [""]
    return f"{first} {last}"


def _points(baseline: LatencyReport, latency: LatencyReport, limits: Limits) -> list[Check]:
    """Both figures at every prompt length that either report has."""
    before = {point.prompt_tokens: point for point in baseline.points}
    after = {point.prompt_tokens: point for point in latency.points}
    checks = []
    for length in sorted({*before, *after}):
        was, now = before.get(length), after.get(length)
        ttft = token = None
        if was and now:
            ttft = _growth(now.ttft_ratio.get(BUNDLE), was.ttft_ratio.get(BUNDLE))
            token = _growth(now.token_ratio.get(BUNDLE), was.token_ratio.get(BUNDLE))
        at, behind = str(length), f"behind {length} tokens, over the baseline's"
        first, each = f"time to first token {behind}", f"time per token {behind}"
        checks += [
            limits.at_most("max_ttft_growth", first, ttft, at=at, fewest=FEWEST_ROUNDS),
            limits.at_most("max_token_growth", each, token, at=at, fewest=FEWEST_ROUNDS),
        ]
    return checks


def _growth(now: Estimate | None, then: Estimate | None) -> Estimate | None:
    """Positive `now` over positive `then`; None where either was not measured."""
    if now is None or then is None:
        return None
    return Estimate(
        now.value / then.value, now.low / then.high, now.high / then.low, min(now.units, then.units)
    )


def _kl(parity: ParityReport) -> Estimate | None:
    """The bundle's mean KL, no part of it below what rounding makes."""
    if parity.bundle is None:
        return None
    kl = parity.bundle.kl_mean
    return dataclasses.replace(
        kl,
        value=max(kl.value, _ROUNDING_KL),
        low=max(kl.low, _ROUNDING_KL),
        high=max(kl.high, _ROUNDING_KL),
    )


def _peak(latency: LatencyReport) -> int | None:
    footprint = latency.footprints.get(BUNDLE)
    return footprint.peak_bytes if footprint else None


def _loss(baseline: TaskReport, task: TaskReport) -> Estimate | None:
    """Baseline's exact calls minus the candidate's, over the utterances that both answered."""
    before, after = _exact(baseline), _exact(task)
    losses = [float(before[key]) - float(exact) for key, exact in after.items() if key in before]
    return mean(losses) if losses else None


def _exact(task: TaskReport) -> dict[tuple[str, str, str], bool]:
    """Whether the bundle's calls were exact, by utterance: the same id may mean another test set."""
    return {
        (answer.id, answer.utterance, answer.expected): answer.exact[BUNDLE]
        for answer in task.answers
        if BUNDLE in answer.exact
    }
