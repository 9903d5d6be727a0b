"""Findings as a table for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from pipeline.claims.finding import Claims, Verdict
from pipeline.claims.text import figure, interval

_STYLES: Mapping[Verdict, str] = {"holds": "green", "fails": "bold red", "unmeasured": "bold yellow"}
_WORDS: Mapping[Verdict, str] = {"holds": "holds", "fails": "NOT HERE", "unmeasured": "UNMEASURED"}


def claims_table(claims: Claims) -> Table:
    """A row for each claim: what the guide says, what was found, the verdict; where it does not hold, why."""
    held = sum(finding.verdict == "holds" for finding in claims.findings)
    title = f"{claims.name}: {held} of {len(claims.findings)} claims of the guide hold here"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("claim", overflow="fold", ratio=1)
    table.add_column("guide", max_width=13, overflow="fold")
    table.add_column("here", no_wrap=True, justify="right")
    table.add_column("verdict", no_wrap=True)
    for finding in claims.findings:
        claim, spread = Text(finding.claim.english), interval(finding)
        if finding.verdict != "holds":
            claim.append(f"\n{finding.note}{f' ({spread})' if spread else ''}", "dim")
        verdict = Text(_WORDS[finding.verdict], _STYLES[finding.verdict])
        table.add_row(claim, finding.claim.said, figure(finding), verdict)
    return table
