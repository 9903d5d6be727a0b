"""The evidence a bundle is admitted on, as frozen records that survive a trip through JSON.

`to_json` and `from_json` are exact inverses. Reading is strict: an unknown, missing or ill-typed
field is an error, because a report that is half understood is no evidence. Standard library only, so
that a device, a CI job and the build host read the same file with the same code.

Units: times in milliseconds, sizes in bytes, KL divergence in nats per position, errors in logits
unless called relative, shares between 0 and 1.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from runtime.errors import DataError
from runtime.strict import parse_json, read_record

SCHEMA_VERSION = 1

Verdict = Literal["pass", "fail", "inconclusive"]
Record = TypeVar("Record")


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % bootstrap interval over conversations, utterances or pairs."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Histogram:
    """Counts between neighbouring edges, of which there is one more."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.counts) + 1:
            raise DataError(f"a histogram of {len(self.counts)} counts has {len(self.edges)} edges")


@dataclass(frozen=True)
class Comparison:
    """One form of the model against another, on the same positions of the same conversations."""

    name: str
    """The form measured, such as `bundle`."""
    against: str
    """The form it is compared with, such as `unmerged`."""
    conversations: int
    positions: int
    max_absolute_error: float
    rms_absolute_error: float
    relative_error: float
    """Largest |difference| over the largest |logit| of the reference."""
    rms_relative_error: float
    """Root mean square of the differences over that of the reference's logits."""
    kl_mean: Estimate
    kl_p99: float
    kl_max: float
    kl_histogram: Histogram
    top1: Estimate
    """Share of positions with the same most probable token, near ties counted as equal."""
    top5: float
    """Mean overlap of the five most probable tokens."""
    flips: int
    """Positions whose most probable token differs although the reference's margin is no near tie."""
    near_tie_flips: int
    near_tie: float
    """Margin in logits below which the reference's first and second choice count as tied."""
    reference_perplexity: float
    perplexity: float
    """Of the conversations' own next tokens."""


@dataclass(frozen=True)
class CacheCheck:
    """The same conversations run another way through the cache, against one prefill of the bundle."""

    way: Literal["decode", "chunks", "rewind"]
    conversations: int
    positions: int
    relative_error: float
    """Largest |difference| over the largest |logit| of the prefill."""
    flips: int


@dataclass(frozen=True)
class RenderingCheck:
    """Prompt token ids of the device against those of the training side."""

    prompts: int
    different: int
    first_difference: str
    """The first utterance whose ids differ, or an empty string."""


@dataclass(frozen=True)
class ParityReport:
    """Whether the bundle computes what was trained."""

    comparisons: tuple[Comparison, ...]
    cache: tuple[CacheCheck, ...]
    rendering: RenderingCheck


@dataclass(frozen=True)
class Score:
    """Task accuracy over a set of utterances."""

    utterances: int
    exact_call: Estimate
    """All calls equal, in order, names and arguments."""
    function_name: float
    """The sequence of function names equal."""
    argument_f1: float
    """F1 of (function, argument, value) triples over the set."""
    refusal: float | None
    """Of the utterances no function fits, the share answered by no call; None when there are none."""
    valid: float
    """Share of answers that parse and satisfy the tools' schemas."""


@dataclass(frozen=True)
class ContenderScore:
    """One contender's scores: over everything, by language, by domain."""

    name: str
    overall: Score
    by_language: dict[str, Score]
    by_domain: dict[str, Score]


@dataclass(frozen=True)
class Answer:
    """What each contender answered to one utterance."""

    id: str
    utterance: str
    expected: str
    """Canonical text of the expected calls."""
    answers: dict[str, str]
    """Contender → its answer's text."""
    exact: dict[str, bool]
    """Contender → whether the calls are exactly the expected ones."""


@dataclass(frozen=True)
class TaskReport:
    """Whether the bundle still does the job, beside the base and the unmerged model."""

    contenders: tuple[ContenderScore, ...]
    exact_call_drop: Estimate
    """Unmerged minus bundle, paired by utterance."""
    mcnemar_p: float
    """Exact two-sided McNemar test of bundle against unmerged (binomial on discordant pairs)."""
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Distribution:
    """Percentiles of repeated measurements, in milliseconds."""

    samples: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class LatencyPoint:
    """Contenders at one prompt length, run in turn, and the ratios pair by pair."""

    prompt_tokens: int
    new_tokens: int
    ttft: dict[str, Distribution]
    """Contender → time from prompt to the first token's logits."""
    token: dict[str, Distribution]
    """Contender → time per decoded token behind the prompt."""
    ttft_ratio: dict[str, Estimate]
    """Contender → its time over the unmerged model's, median of pairs."""
    token_ratio: dict[str, Estimate]


@dataclass(frozen=True)
class Footprint:
    """What a contender's own process took."""

    load_ms: float
    peak_bytes: int


@dataclass(frozen=True)
class Machine:
    """Where latency was measured; figures of different machines are not comparable."""

    processor: str
    cores: int
    features: tuple[str, ...]
    system: str
    memory_bytes: int
    versions: dict[str, str]


@dataclass(frozen=True)
class LatencyReport:
    """How fast the bundle is beside the unmerged model on one machine."""

    machine: Machine
    threads: int
    points: tuple[LatencyPoint, ...]
    footprints: dict[str, Footprint]


@dataclass(frozen=True)
class Check:
    """One gate: a figure against its threshold."""

    name: str
    """The threshold's name in the config's `[gate]` table."""
    subject: str
    """What was measured, for a person."""
    value: float | None
    """None when nothing was measured."""
    low: float | None
    high: float | None
    threshold: float
    direction: Literal["at most", "at least"]
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class GateReport:
    """Every check and the verdict: pass only when each check passes."""

    precision: str
    checks: tuple[Check, ...]
    verdict: Verdict


@dataclass(frozen=True)
class Report:
    """report.json: everything a bundle was judged by."""

    schema_version: int
    name: str
    parity: ParityReport
    task: TaskReport
    latency: LatencyReport
    gate: GateReport
    lineage: dict[str, str]
    """Stage → digest of its outputs."""
    sizes: dict[str, int]
    """Artifact → bytes."""
    training: dict[str, float]
    """Figures of the training stage, empty for an adapter trained elsewhere."""


def to_json(record: object) -> str:
    """The record as JSON: UTF-8, indented, keys in field order.

    Raises:
        DataError: a figure is NaN or infinite, which JSON cannot say and a gate cannot judge.
    """
    value = dataclasses.asdict(record)  # type: ignore[call-overload]  # any of the records above
    try:
        return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    except ValueError as error:
        raise DataError(f"a {type(record).__name__} holds a figure that is not finite: {error}") from error


def from_json(kind: type[Record], text: str) -> Record:
    """Read back what `to_json` wrote.

    Raises:
        DataError: the text is not JSON, or a field is unknown, missing or of another type.
    """
    try:
        record, problems = read_record(kind, parse_json(text))
    except ValueError as error:
        raise DataError(f"a {kind.__name__} is not valid JSON: {error}") from error
    if record is None:
        raise DataError(f"a {kind.__name__} is malformed: {'; '.join(problems)}")
    return record


def read_report(path: Path) -> Report:
    """Read a report.json.

    Raises:
        DataError: the file is missing, of another schema version, or malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
        value = parse_json(text)
    except FileNotFoundError:
        raise DataError(f"no report at {path}; run validate or build first") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the report {path}: {error}") from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"{path} has schema version {version}; this version reads {SCHEMA_VERSION} only")
    return from_json(Report, text)
