"""Thresholds, and what it means for a figure to keep one. No torch, no files, no clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.config import Precision
from runtime.report import Check, Estimate, Verdict

FEWEST_UNITS = 10
"""Conversations or utterances below which an interval says too little to pass on."""
FEWEST_ROUNDS = 3
"""The same for rounds of timing, whose ratios hardly vary."""

# Why each default is what it is: docs/gates.md.
_ALWAYS: Mapping[str, float] = {
    "max_float_cache_error": 1e-4,
    "min_valid": 0.95,
    "max_ttft_ratio": 1.0,
    "max_token_ratio": 1.0,
    "max_call_ratio": 1.0,
    "max_peak_ratio": 1.0,
    "max_kl_growth": 1.5,
    "max_exact_call_loss": 0.05,
    "max_ttft_growth": 1.25,
    "max_token_growth": 1.25,
    "max_call_growth": 1.25,
    "max_peak_growth": 1.15,
}
DEFAULTS: Mapping[Precision, Mapping[str, float]] = {
    "fp32": {
        **_ALWAYS,
        "max_hop_error": 1e-4,
        "max_relative_error": 1e-4,
        "max_mean_kl": 1e-7,
        "max_p99_kl": 1e-6,
        "min_top1": 1.0,
        "min_identical_answers": 0.95,
        "max_cache_error": 1e-4,
        "max_exact_call_drop": 0.02,
    },
    "fp16": {
        **_ALWAYS,
        "max_hop_error": 1e-2,
        "max_relative_error": 1e-2,
        "max_mean_kl": 1e-4,
        "max_p99_kl": 1e-3,
        "min_top1": 0.99,
        "min_identical_answers": 0.9,
        "max_cache_error": 1e-2,
        "max_exact_call_drop": 0.03,
    },
    "int8": {
        **_ALWAYS,
        "max_hop_error": 1e-4,
        "max_weights_kl": 0.005,
        "max_activations_kl": 0.01,
        "max_relative_error": 0.1,
        "max_mean_kl": 0.01,
        "max_p99_kl": 0.15,
        "min_top1": 0.97,
        "min_identical_answers": 0.7,
        "max_cache_error": 0.05,
        "max_exact_call_drop": 0.05,
    },
    "int4": {
        **_ALWAYS,
        "max_hop_error": 1e-4,
        "max_weights_kl": 0.15,
        "max_activations_kl": 0.05,
        "max_relative_error": 0.5,
        "max_mean_kl": 0.15,
        "max_p99_kl": 2.0,
        "min_top1": 0.9,
        "min_identical_answers": 0.3,
        "max_cache_error": 0.05,
        "max_exact_call_drop": 0.10,
    },
}
ROUNDED_MERGE: Mapping[str, float] = {"float16": 1e-2, "bfloat16": 5e-2}
"""`max_hop_error` of a merged checkpoint that is kept in half precision: each sum W0 + s·BA is rounded once
to 11 or 8 bits, which the unmerged model in float32 is not."""


@dataclass(frozen=True)
class Limits:
    """The thresholds in force, by name."""

    thresholds: Mapping[str, float]

    def has(self, name: str) -> bool:
        """Whether there is a threshold of this name; some have no default."""
        return name in self.thresholds

    def at_most(
        self,
        name: str,
        subject: str,
        figure: Estimate | float | None,
        *,
        at: str = "",
        fewest: int = FEWEST_UNITS,
    ) -> Check:
        """Judge a figure that should not be above the threshold; None was not measured."""
        return _check(name, at, subject, figure, self.thresholds[name], "at most", fewest)

    def at_least(self, name: str, subject: str, figure: Estimate | float | None, *, at: str = "") -> Check:
        """Judge a figure that should not be below the threshold; None was not measured."""
        return _check(name, at, subject, figure, self.thresholds[name], "at least", FEWEST_UNITS)


def _check(
    name: str,
    at: str,
    subject: str,
    figure: Estimate | float | None,
    threshold: float,
    direction: Literal["at most", "at least"],
    fewest: int,
) -> Check:
    if figure is None:
        reason = "not measured"
        return Check(name, at, subject, None, None, None, threshold, direction, "inconclusive", reason)
    if not isinstance(figure, Estimate):
        verdict = _verdict(figure, figure, threshold, direction)
        reason = _REASONS[verdict]
        return Check(name, at, subject, figure, None, None, threshold, direction, verdict, reason)
    low, high = figure.low, figure.high
    verdict = _verdict(low, high, threshold, direction)
    reason = _REASONS.get(verdict) or _wanted(figure, threshold)
    if verdict == "pass" and figure.units < fewest:
        verdict, reason = (
            "inconclusive",
            f"measured on {figure.units}, and {fewest} are the fewest to pass on",
        )
    return Check(name, at, subject, figure.value, low, high, threshold, direction, verdict, reason)


_REASONS: Mapping[Verdict, str] = {"pass": "within the threshold", "fail": "beyond the threshold"}


def _verdict(low: float, high: float, threshold: float, direction: Literal["at most", "at least"]) -> Verdict:
    if not (math.isfinite(low) and math.isfinite(high)):
        return "fail"
    best, worst = (low, high) if direction == "at most" else (-high, -low)
    limit = threshold if direction == "at most" else -threshold
    if worst <= limit:
        return "pass"
    return "fail" if best > limit else "inconclusive"


def _wanted(figure: Estimate, threshold: float) -> str:
    """How large a sample would settle it: half an interval shrinks with the sample's square root."""
    half_width, distance = (figure.high - figure.low) / 2, abs(threshold - figure.value)
    if not distance:
        return "the figure lies on the threshold; a larger sample may settle it"
    units = math.ceil(figure.units * max(1.0, half_width / distance) ** 2)
    return f"the interval straddles the threshold; about {units} instead of {figure.units} would settle it"
