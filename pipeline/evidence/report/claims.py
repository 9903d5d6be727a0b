"""The guide's claims, as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.claims import finding
from pipeline.claims.finding import Claims
from pipeline.claims.text import figure, interval
from pipeline.evidence.report.words import Language
from runtime.report import Verdict

KINDS: Mapping[finding.Verdict, Verdict] = {
    "holds": "pass",
    "fails": "fail",
    "unmeasured": "inconclusive",
}
"""The verdict of a check that looks like it."""


@dataclass(frozen=True)
class Told:
    """One claim in one language.

    Attributes:
        statement: what the guide says.
        figure: what was found.
        interval: of that.
        verdict: on the claim.
        kind: the verdict of a check that looks like it.
    """

    statement: str
    figure: str
    interval: str
    verdict: finding.Verdict
    kind: Verdict


def told(claims: Claims, language: Language) -> list[Told]:
    """Every claim, in the guide's order."""
    return [
        Told(
            statement=found.claim.english if language == "en" else found.claim.chinese,
            figure=figure(found),
            interval=interval(found),
            verdict=found.verdict,
            kind=KINDS[found.verdict],
        )
        for found in claims.findings
    ]
