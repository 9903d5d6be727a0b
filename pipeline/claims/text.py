"""Figures and verdicts of findings, as text."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.claims.finding import Finding, Unit, Verdict
from pipeline.evidence.report.figures import between, number, size, times

VERDICTS: Mapping[Verdict, str] = {
    "holds": "holds",
    "fails": "does not hold here",
    "unmeasured": "cannot be measured here",
}


def figure(finding: Finding) -> str:
    """What was found, in the claim's unit; a dash where there is nothing."""
    return "—" if finding.figure is None else _shown(finding.claim.unit, finding.figure.value)


def interval(finding: Finding) -> str:
    """Its 95 % interval; empty where a figure has no spread."""
    found = finding.figure
    if found is None or found.low == found.high:
        return ""
    return between(_shown(finding.claim.unit, found.low), _shown(finding.claim.unit, found.high))


def _shown(unit: Unit, value: float) -> str:
    match unit:
        case "ratio":
            return times(value) if value < 100 else f"{number(value)}×"
        case "share":
            return f"{number(100 * value)}\u00a0%"
        case "bytes":
            return size(value)
        case "count":
            return str(int(value))
        case "number":
            return number(value)
