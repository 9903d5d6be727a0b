"""A claim, what was found, and the verdict: does the figure lie where the claim says?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.errors import DataError
from runtime.report import Estimate, Machine, from_json

SCHEMA_VERSION = 1
FILE = "claims.json"

Unit = Literal["ratio", "share", "bytes", "count", "number"]
How = Literal["computed", "measured"]
Verdict = Literal["holds", "fails", "unmeasured"]
"""`fails`: it does not hold here; `unmeasured`: it cannot be measured here, or not well enough to say."""


@dataclass(frozen=True)
class Claim:
    """A statement of the guide that can be checked.

    Attributes:
        section: the guide's heading above it, and what that is in English.
        english: what it says.
        chinese: the same, near to the guide's own words.
        said: the figure that the guide gives; empty where it gives none.
        unit: of the bounds and of what is found.
        low: smallest figure that bears it out; None is no bound.
        high: largest.
    """

    section: str
    english: str
    chinese: str
    said: str
    unit: Unit
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Finding:
    """What became of a claim.

    Attributes:
        claim: what was said.
        how: whether the figure was computed or measured.
        figure: None when there is none.
        note: of what the figure is, and why it is what it is; or why there is none.
        verdict: see `judge`.
    """

    claim: Claim
    how: How
    figure: Estimate | None
    note: str
    verdict: Verdict


@dataclass(frozen=True)
class Claims:
    """claims.json: every claim of the guide, found on one machine for one run.

    Attributes:
        name: of the run.
        machine: where it was measured.
        threads: of every process.
        device: what trained.
        dtype: number format of products while training.
        steps: optimizer steps of each training whose loss is compared.
        lineage: base, adapter and merged checkpoint → digest.
        findings: in the guide's order.
    """

    schema_version: int
    name: str
    machine: Machine
    threads: int
    device: str
    dtype: str
    steps: int
    lineage: dict[str, str]
    findings: tuple[Finding, ...]


def judge(figure: Estimate, low: float | None, high: float | None) -> Verdict:
    """Where the whole 95 % interval lies: within the bounds, outside, or on both sides of one."""
    if (low is None or figure.low >= low) and (high is None or figure.high <= high):
        return "holds"
    if (low is not None and figure.high < low) or (high is not None and figure.low > high):
        return "fails"
    return "unmeasured"


def computed(claim: Claim, value: float, note: str) -> Finding:
    """A figure that follows from shapes, counts or arithmetic."""
    figure = exactly(value)
    return Finding(claim, "computed", figure, note, judge(figure, claim.low, claim.high))


def measured(claim: Claim, figure: Estimate, note: str) -> Finding:
    """A figure with its interval; one that straddles a bound decides nothing, and says so."""
    verdict = judge(figure, claim.low, claim.high)
    if verdict == "unmeasured":
        note += "; the interval lies on both sides of what is claimed"
    return Finding(claim, "measured", figure, note, verdict)


def unmeasured(claim: Claim, reason: str) -> Finding:
    """No figure, and why."""
    return Finding(claim, "measured", None, reason, "unmeasured")


def exactly(value: float) -> Estimate:
    """A figure without spread: computed, or read once."""
    return Estimate(value, value, value, 1)


def claims_of(run: Path, lineage: Mapping[str, str]) -> Claims | None:
    """The claims.json of a run, when it is of the very models that `lineage` names.

    None when there is none, when it is of another base, adapter or merge, and when it cannot be read: it
    can be made again, and a report must not fail for it.
    """
    try:
        found = from_json(Claims, (run / FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, DataError):
        return None
    current = all(lineage.get(name) == digest for name, digest in found.lineage.items())
    return found if found.schema_version == SCHEMA_VERSION and current else None
