"""Checks, and which step of the way broke, in words."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evidence.report import figures
from pipeline.evidence.report.words import WORDS, Language, form, reason, say
from runtime.report import Check, GateReport, SiteError


@dataclass(frozen=True)
class Line:
    """One check as a row of the table and as a sentence."""

    check: Check
    label: str
    figure: str
    interval: str
    threshold: str
    used: figures.Budget | None
    reason: str
    sentence: str


def lines(gate: GateReport, language: Language) -> list[Line]:
    """Every check of the gate, in the gate's order."""
    return [_line(language, check) for check in gate.checks]


def _line(language: Language, check: Check) -> Line:
    key = f"check.{check.name}"
    label = say(language, key, form(language, check.at)) if key in WORDS else check.subject
    figure, interval = figures.check_figure(check), figures.check_interval(check)
    threshold, why = figures.check_threshold(check), reason(language, check.reason)
    with_interval = say(language, "with interval", figure, interval) if interval else figure
    if check.name in ("rendering", "switching"):
        sentence = say(language, "sentence.counted", label, why)
    elif check.value is None:
        sentence = say(language, "sentence.unmeasured", label)
    elif check.verdict == "inconclusive":
        sentence = say(language, "sentence.inconclusive", label, with_interval, threshold, why)
    else:
        sentence = say(language, f"sentence.{check.direction}", label, with_interval, threshold)
    return Line(
        check=check,
        label=label,
        figure=figure,
        interval=interval,
        threshold=say(language, check.direction, threshold),
        used=figures.budget_used(check),
        reason=why,
        sentence=sentence,
    )


def place(language: Language, site: SiteError) -> str:
    """Where an operator is: `layer 3, attention.qkv (MatMul)`."""
    if site.layer is None:
        return say(language, "place.outside", site.site, site.operator)
    return say(language, "place", site.layer, site.site, site.operator)


def culprit_verdict(gate: GateReport) -> str:
    """Whether the culprit is beyond its budget (`fail`) or only in doubt (`inconclusive`)."""
    hop = "" if gate.culprit is None else gate.culprit.hop
    failed = any(check.verdict == "fail" for check in gate.checks if check.at == hop)
    return "fail" if failed else "inconclusive"


def culprit_sentence(gate: GateReport, language: Language) -> str:
    """Which step broke and where in it; empty when none did."""
    found = gate.culprit
    if found is None:
        return ""
    verdict = culprit_verdict(gate)
    if found.site is not None and verdict == "fail":
        where, error, before = place(language, found.site), found.site.error, found.before
        step = form(language, found.hop)
        return say(language, "culprit.site", step, where, figures.number(error), figures.number(before))
    return say(language, f"culprit.{verdict}", form(language, found.hop), form(language, found.against))
