"""The verdict: pure functions of reports and thresholds. No torch, no files, no clock.

A check passes when the whole 95 % interval of its figure is on the right side of the threshold, fails
when the whole interval is on the wrong side, and is inconclusive in between; figures without an
interval (a maximum over everything measured) pass or fail. Inconclusive does not pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pipeline.config import Gate, Precision
from runtime.errors import ConfigError
from runtime.report import (
    Check,
    Comparison,
    Estimate,
    GateReport,
    LatencyReport,
    ParityReport,
    Score,
    TaskReport,
    Verdict,
)

# Why each default is what it is: docs/gates.md.
DEFAULTS: Mapping[Precision, Mapping[str, float]] = {
    "fp32": {
        "max_relative_error": 1e-4,
        "max_mean_kl": 1e-7,
        "max_p99_kl": 1e-6,
        "min_top1": 1.0,
        "max_cache_error": 1e-4,
        "max_exact_call_drop": 0.02,
        "max_ttft_ratio": 1.0,
        "max_token_ratio": 1.0,
    },
    "fp16": {
        "max_relative_error": 1e-2,
        "max_mean_kl": 1e-4,
        "max_p99_kl": 1e-3,
        "min_top1": 0.99,
        "max_cache_error": 1e-2,
        "max_exact_call_drop": 0.03,
        "max_ttft_ratio": 1.0,
        "max_token_ratio": 1.0,
    },
    "int8": {
        "max_relative_error": 0.1,
        "max_mean_kl": 0.01,
        "max_p99_kl": 0.15,
        "min_top1": 0.97,
        "max_cache_error": 0.05,
        "max_exact_call_drop": 0.05,
        "max_ttft_ratio": 1.0,
        "max_token_ratio": 1.0,
    },
    "int4": {
        "max_relative_error": 0.5,
        "max_mean_kl": 0.15,
        "max_p99_kl": 2.0,
        "min_top1": 0.9,
        "max_cache_error": 0.05,
        "max_exact_call_drop": 0.10,
        "max_ttft_ratio": 1.0,
        "max_token_ratio": 1.0,
    },
}


def judge(
    precision: Precision, gate: Gate, parity: ParityReport, task: TaskReport, latency: LatencyReport
) -> GateReport:
    """Every check, and the verdict over them.

    Raises:
        ConfigError: the reports lack the bundle's own figures, so there is nothing to judge.
    """
    limits = {**DEFAULTS[precision], **gate.model_dump(exclude_none=True)}
    comparison, score = _of_bundle(parity, task)
    checks = [
        _rendering(parity),
        _at_most("max_relative_error", "largest logit error, relative", comparison.relative_error, limits),
        _at_most("max_mean_kl", "mean KL from the unmerged model", comparison.kl_mean, limits),
        _at_most("max_p99_kl", "99 % quantile of KL", comparison.kl_p99, limits),
        _at_least("min_top1", "same most probable token", comparison.top1, limits),
    ]
    for check in parity.cache:
        checks.append(
            _at_most("max_cache_error", f"cache: {check.way} against prefill", check.relative_error, limits)
        )
    checks.append(
        _at_most("max_exact_call_drop", "exact calls lost to the bundle", task.exact_call_drop, limits)
    )
    if "min_exact_call" in limits:
        checks.append(
            _at_least("min_exact_call", "exact-call accuracy of the bundle", score.exact_call, limits)
        )
    for point in latency.points:
        at = f"behind {point.prompt_tokens} tokens, over the unmerged model's"
        checks += [
            _at_most("max_ttft_ratio", f"time to first token {at}", point.ttft_ratio.get("bundle"), limits),
            _at_most("max_token_ratio", f"time per token {at}", point.token_ratio.get("bundle"), limits),
        ]
    return GateReport(precision, tuple(checks), _overall([check.verdict for check in checks]))


def _of_bundle(parity: ParityReport, task: TaskReport) -> tuple[Comparison, Score]:
    comparison = next((c for c in parity.comparisons if (c.name, c.against) == ("bundle", "unmerged")), None)
    score = next((c.overall for c in task.contenders if c.name == "bundle"), None)
    if comparison is None or score is None:
        raise ConfigError(
            "the reports do not measure the bundle against the unmerged model: run validate again"
        )
    return comparison, score


def _overall(verdicts: list[Verdict]) -> Verdict:
    if "fail" in verdicts:
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts else "pass"


def _rendering(parity: ParityReport) -> Check:
    check = parity.rendering
    verdict: Verdict = "inconclusive" if check.prompts == 0 else "fail" if check.different else "pass"
    reason = {
        "pass": f"all {check.prompts} prompts have the same token ids",
        "fail": f"{check.different} of {check.prompts} prompts differ, first: {check.first_difference}",
        "inconclusive": "no prompt was compared",
    }[verdict]
    subject = "prompts whose token ids differ on the device"
    return Check("rendering", subject, float(check.different), None, None, 0.0, "at most", verdict, reason)


def _at_most(name: str, subject: str, figure: Estimate | float | None, limits: Mapping[str, float]) -> Check:
    return _check(name, subject, figure, limits[name], "at most")


def _at_least(name: str, subject: str, figure: Estimate | float | None, limits: Mapping[str, float]) -> Check:
    return _check(name, subject, figure, limits[name], "at least")


def _check(
    name: str,
    subject: str,
    figure: Estimate | float | None,
    threshold: float,
    direction: Literal["at most", "at least"],
) -> Check:
    if figure is None:
        reason = "not measured"
        return Check(name, subject, None, None, None, threshold, direction, "inconclusive", reason)
    interval = figure if isinstance(figure, Estimate) else Estimate(figure, figure, figure)
    verdict = _verdict(interval, threshold, direction)
    low, high = (interval.low, interval.high) if isinstance(figure, Estimate) else (None, None)
    return Check(
        name,
        subject,
        interval.value,
        low,
        high,
        threshold,
        direction,
        verdict,
        _reason(verdict, interval, threshold),
    )


def _verdict(interval: Estimate, threshold: float, direction: Literal["at most", "at least"]) -> Verdict:
    if not all(math.isfinite(bound) for bound in (interval.value, interval.low, interval.high)):
        return "fail"
    best, worst = (interval.low, interval.high) if direction == "at most" else (-interval.high, -interval.low)
    limit = threshold if direction == "at most" else -threshold
    if worst <= limit:
        return "pass"
    return "fail" if best > limit else "inconclusive"


def _reason(verdict: Verdict, interval: Estimate, threshold: float) -> str:
    if verdict == "inconclusive":
        # The half-width shrinks with the square root of the sample, so this many times more settles it.
        half_width, distance = (interval.high - interval.low) / 2, abs(threshold - interval.value)
        more = (
            f"about {math.ceil((half_width / distance) ** 2)} times the sample"
            if distance
            else "a larger sample"
        )
        return f"the interval straddles the threshold; {more} would settle it"
    return {"pass": "within the threshold", "fail": "beyond the threshold"}[verdict]
