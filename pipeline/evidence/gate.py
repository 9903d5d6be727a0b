"""The verdict: pure functions of reports and thresholds. No torch, no files, no clock.

A check passes when the whole 95 % interval of its figure is on the right side of the threshold, fails
when the whole interval is on the wrong side, and is inconclusive in between, or where too little was
measured; figures without an interval (a maximum over everything measured) pass or fail. Inconclusive
does not pass.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import Gate, Precision
from pipeline.evidence.baseline import against_baseline
from pipeline.evidence.culprit import culprit
from pipeline.evidence.switching import Switching
from pipeline.evidence.thresholds import DEFAULTS, FEWEST_ROUNDS, ROUNDED_MERGE, Limits
from runtime.errors import ConfigError
from runtime.report import (
    Check,
    GateReport,
    LatencyReport,
    ParityReport,
    Report,
    TaskReport,
    Verdict,
)


def judge(
    precision: Precision,
    gate: Gate,
    parity: ParityReport,
    task: TaskReport,
    latency: LatencyReport,
    baseline: Report | None = None,
    switching: Switching | None = None,
) -> GateReport:
    """Every check, and the verdict over them.

    Args:
        precision: of the bundle; chooses the defaults.
        gate: thresholds that the config sets.
        parity: of the bundle.
        task: of the bundle.
        latency: of the bundle.
        baseline: the last release's report, measured on the same machine and versions.
        switching: of a bundle with several tasks.

    Raises:
        ConfigError: the reports lack the bundle's own figures, so there is nothing to judge.
    """
    own = gate.model_dump(exclude_none=True)
    limits = Limits({**DEFAULTS[precision], **own})
    checks = [
        _rendering(parity),
        *_hops(parity, limits, own),
        *_parity(parity, limits),
        *_task(task, limits),
        *_latency(latency, limits),
        *([] if switching is None else [_switching(switching)]),
        *([] if baseline is None else against_baseline(baseline, parity, task, latency, limits)),
    ]
    return GateReport(
        precision, tuple(checks), _overall([check.verdict for check in checks]), culprit(parity, checks)
    )


def _hops(parity: ParityReport, limits: Limits, own: Mapping[str, float]) -> list[Check]:
    """Each form against the one before it."""
    checks = []
    for hop in parity.hops:
        name, step = hop.step.name, hop.step
        against = f"{name} against {step.against}"
        if name == "weights_only":
            checks.append(limits.at_most("max_weights_kl", f"mean KL, {against}", step.kl_mean, at=name))
        elif name == "shipped" and step.against == "weights_only":
            checks.append(limits.at_most("max_activations_kl", f"mean KL, {against}", step.kl_mean, at=name))
        else:
            # One position beyond the limit is a fact, whatever a resampling would have left out.
            error, subject = step.relative_error.value, f"largest logit error, relative, {against}"
            rounded = ROUNDED_MERGE.get(hop.weights) if name == "merged" else None
            loosened = limits if rounded is None else Limits({"max_hop_error": rounded, **own})
            checks.append(loosened.at_most("max_hop_error", subject, error, at=name))
    return checks


def _parity(parity: ParityReport, limits: Limits) -> list[Check]:
    """The bundle against the unmerged model, and its cache."""
    found = parity.bundle
    if found is None:
        raise ConfigError(
            "the reports do not measure the bundle against the unmerged model: run validate again"
        )
    checks = [
        limits.at_most("max_relative_error", "largest logit error, relative", found.relative_error.value),
        limits.at_most("max_mean_kl", "mean KL from the unmerged model", found.kl_mean),
        limits.at_most("max_p99_kl", "99 % quantile of KL", found.kl_p99),
        limits.at_least("min_top1", "same most probable token", found.top1),
        limits.at_least("min_identical_answers", "greedy answers alike", parity.generations.identical),
    ]
    for check in parity.cache:
        name = "max_cache_error" if check.form == "bundle" else "max_float_cache_error"
        activations = "" if check.form == "bundle" else ", float activations"
        subject = f"cache: {check.way} against prefill{activations}"
        checks.append(limits.at_most(name, subject, check.relative_error, at=check.way))
    return checks


def _task(task: TaskReport, limits: Limits) -> list[Check]:
    score = next((c.overall for c in task.contenders if c.name == "bundle"), None)
    if score is None:
        raise ConfigError("the reports do not measure the bundle's answers: run validate again")
    checks = [
        limits.at_most("max_exact_call_drop", "exact calls lost to the bundle", task.exact_call_drop),
        limits.at_least("min_valid", "valid answers of the bundle", score.valid),
    ]
    if limits.has("min_exact_call"):
        subject = "exact-call accuracy of the bundle"
        checks.append(limits.at_least("min_exact_call", subject, score.exact_call))
    return checks


def _latency(latency: LatencyReport, limits: Limits) -> list[Check]:
    over = "over the unmerged model's"
    checks = []
    for point in latency.points:
        at, behind = str(point.prompt_tokens), f"behind {point.prompt_tokens} tokens, {over}"
        ttft, token = point.ttft_ratio.get("bundle"), point.token_ratio.get("bundle")
        checks += [
            limits.at_most(
                "max_ttft_ratio", f"time to first token {behind}", ttft, at=at, fewest=FEWEST_ROUNDS
            ),
            limits.at_most("max_token_ratio", f"time per token {behind}", token, at=at, fewest=FEWEST_ROUNDS),
        ]
    bundle, unmerged = (latency.footprints.get(name) for name in ("bundle", "unmerged"))
    peak = bundle.peak_bytes / unmerged.peak_bytes if bundle and unmerged else None
    checks += [
        limits.at_most(
            "max_call_ratio",
            f"time of a whole answer, {over}",
            latency.call.ratio.get("bundle"),
            fewest=FEWEST_ROUNDS,
        ),
        limits.at_most("max_peak_ratio", f"peak memory, {over}", peak),
    ]
    if limits.has("max_load_ms"):
        load = bundle.load_ms if bundle else None
        checks.append(limits.at_most("max_load_ms", "time to verify and open the bundle", load))
    return checks


def _overall(verdicts: list[Verdict]) -> Verdict:
    if "fail" in verdicts:
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts else "pass"


def _switching(found: Switching) -> Check:
    verdict: Verdict = "inconclusive" if found.turns == 0 else "fail" if found.different else "pass"
    reason = {
        "pass": f"all {found.turns} answers of {found.tasks} tasks and the base are as before, to the bit",
        "fail": f"{found.different} of {found.turns} answers differ, first: {found.first_difference}",
        "inconclusive": "no answer was compared",
    }[verdict]
    subject = "answers that depend on which task was asked before"
    return Check(
        "switching", "", subject, float(found.different), None, None, 0.0, "at most", verdict, reason
    )


def _rendering(parity: ParityReport) -> Check:
    check = parity.rendering
    verdict: Verdict = "inconclusive" if check.prompts == 0 else "fail" if check.different else "pass"
    reason = {
        "pass": f"all {check.prompts} prompts have the same token ids",
        "fail": f"{check.different} of {check.prompts} prompts differ, first: {check.first_difference}",
        "inconclusive": "no prompt was compared",
    }[verdict]
    subject = "prompts whose token ids differ on the device"
    return Check(
        "rendering", "", subject, float(check.different), None, None, 0.0, "at most", verdict, reason
    )
