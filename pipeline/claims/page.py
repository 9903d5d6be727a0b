"""Findings as a page in Markdown, under the guide's own headings."""

from __future__ import annotations

from itertools import groupby
from textwrap import fill
from typing import get_args

from pipeline.claims.finding import Claims, Finding, Verdict
from pipeline.claims.text import VERDICTS, figure, interval
from pipeline.evidence.report.figures import size

WIDTH = 110


def page(claims: Claims) -> str:
    """The whole page, to be written as UTF-8."""
    machine = claims.machine
    counts = {verdict: sum(f.verdict == verdict for f in claims.findings) for verdict in get_args(Verdict)}
    tally = ", ".join(f"{count} × {VERDICTS[verdict]}" for verdict, count in counts.items())
    said = (
        f"Every statement of the guide that can be checked, computed or measured on the run `{claims.name}` "
        f"by `cockpit claims`: {tally}. A statement holds where the whole 95 % interval of its figure lies "
        "where the guide says, does not hold here where all of it lies elsewhere, and cannot be measured "
        "here where it lies on both sides or where there is nothing to measure. The guide's recommendations "
        "(which rank, which layers) are choices and not listed."
    )
    measured = (
        f"Measured on {machine.processor}, {machine.cores} cores, {size(machine.memory_bytes)} of memory; "
        f"threads: {claims.threads}; trained on {claims.device}, products in {claims.dtype}; trainings that "
        f"are compared have {claims.steps} steps each. Ratios of times are medians of rounds in which the "
        "compared ran in turn, each in a process of its own."
    )
    lines = ["# What holds of the reference guide", "", fill(said, WIDTH), "", fill(measured, WIDTH)]
    for section, findings in groupby(claims.findings, lambda finding: finding.claim.section):
        lines += ["", f"## {section}", "", "| the guide says | | here | verdict | |", "|---|---|---|---|---|"]
        lines += [_row(finding) for finding in findings]
    return "\n".join(lines) + "\n"


def _row(finding: Finding) -> str:
    spread = interval(finding)
    here = f"{figure(finding)} ({spread})" if spread else figure(finding)
    how = "" if finding.figure is None else f"{finding.how}: "
    verdict = VERDICTS[finding.verdict]
    cells = (
        finding.claim.english,
        finding.claim.said,
        here,
        verdict if finding.verdict == "holds" else f"**{verdict}**",
        f"{how}{finding.note}",
    )
    return f"| {' | '.join(cells)} |"
