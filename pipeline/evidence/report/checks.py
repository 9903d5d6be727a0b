"""Checks in words, and the step of the way at which a model breaks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.evidence.report import figures
from pipeline.evidence.report.words import WORDS, Language, say
from runtime.report import Check, Comparison, Estimate, Report, Verdict


@dataclass(frozen=True)
class Line:
    """One check as a row of the table and as a sentence."""

    check: Check
    label: str
    figure: str
    interval: str
    threshold: str
    used: Estimate | None
    """See `pipeline.evidence.report.figures.budget_used`."""
    reason: str
    sentence: str


@dataclass(frozen=True)
class Step:
    """One box of the way from the unmerged model to the bundle."""

    comparison: Comparison
    verdict: Verdict
    guilty: bool
    """Whether it is the first that failed."""


def lines(report: Report, language: Language) -> list[Line]:
    """Every check of the gate, in the gate's order."""
    # The gate judges every way through the cache and every prompt length by one threshold, in the
    # order of the report, so the n-th check of such a name is about the n-th of these.
    cache = iter([say(language, check.way) for check in report.parity.cache])
    ttft, token = (iter([str(point.prompt_tokens) for point in report.latency.points]) for _ in range(2))
    about = {"max_cache_error": cache, "max_ttft_ratio": ttft, "max_token_ratio": token}
    return [_line(report, language, check, _label(language, check, about)) for check in report.gate.checks]


def _label(language: Language, check: Check, about: dict[str, Iterator[str]]) -> str:
    if f"check.{check.name}" not in WORDS:
        return check.subject
    return say(
        language, f"check.{check.name}", *([next(about[check.name], "?")] if check.name in about else [])
    )


def _line(report: Report, language: Language, check: Check, label: str) -> Line:
    figure, interval = figures.check_figure(check), figures.check_interval(check)
    threshold = figures.check_threshold(check)
    reason = _reason(report, language, check)
    with_interval = say(language, "with interval", figure, interval) if interval else figure
    if check.name == "rendering":
        sentence = say(language, "sentence.rendering", label, reason)
    elif check.value is None:
        sentence = say(language, "sentence.unmeasured", label)
    elif check.verdict == "inconclusive":
        sentence = say(language, "sentence.inconclusive", label, with_interval, threshold, reason)
    else:
        sentence = say(language, f"sentence.{check.direction}", label, with_interval, threshold)
    return Line(
        check=check,
        label=label,
        figure=figure,
        interval=interval,
        threshold=say(language, check.direction, threshold),
        used=figures.budget_used(check),
        reason=reason,
        sentence=sentence,
    )


def _reason(report: Report, language: Language, check: Check) -> str:
    if f"check.{check.name}" not in WORDS:
        return check.reason
    if check.name == "rendering":
        rendering = report.parity.rendering
        values = {
            "pass": (rendering.prompts,),
            "fail": (rendering.different, rendering.prompts, rendering.first_difference),
            "inconclusive": (),
        }[check.verdict]
        return say(language, f"reason.rendering.{check.verdict}", *values)
    if check.value is None:
        return say(language, "reason.unmeasured")
    if check.verdict == "inconclusive":
        wanted = figures.samples_wanted(check)
        if wanted is None:
            return say(language, "reason.on_threshold")
        return say(language, "reason.inconclusive", wanted)
    return say(language, f"reason.{check.verdict}")


def steps(report: Report) -> list[Step]:
    """The comparisons in order, each with a verdict by the thresholds that the bundle is judged by."""
    verdicts = [_step_verdict(report, comparison) for comparison in report.parity.comparisons]
    first = verdicts.index("fail") if "fail" in verdicts else None
    return [
        Step(comparison, verdict, index == first)
        for index, (comparison, verdict) in enumerate(zip(report.parity.comparisons, verdicts, strict=True))
    ]


def _step_verdict(report: Report, comparison: Comparison) -> Verdict:
    own = {
        "max_relative_error": comparison.relative_error,
        "max_mean_kl": comparison.kl_mean.value,
        "max_p99_kl": comparison.kl_p99,
        "min_top1": comparison.top1.value,
    }
    checks = [check for check in report.gate.checks if check.name in own]
    if (comparison.name, comparison.against) == ("bundle", "unmerged"):
        verdicts = {check.verdict for check in checks}
        return "fail" if "fail" in verdicts else "inconclusive" if "inconclusive" in verdicts else "pass"
    beyond = [
        not (
            own[check.name] <= check.threshold
            if check.direction == "at most"
            else own[check.name] >= check.threshold
        )
        for check in checks
    ]
    return "fail" if any(beyond) else "pass"
