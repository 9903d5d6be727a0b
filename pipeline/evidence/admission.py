"""From measurements to a verdict on disk: assemble the report, write it, refuse what did not pass."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.advise.advice import advice_of
from pipeline.claims.finding import claims_of
from pipeline.config import Gate
from pipeline.evidence.gate import judge
from pipeline.evidence.report.html import draw
from pipeline.evidence.report.junit import junit
from pipeline.evidence.switching import Switching
from pipeline.rounding.record import rounding_of
from pipeline.stage import RECORD, Artifact
from pipeline.training.record import TRAINING
from runtime.errors import GateError
from runtime.manifest import verify
from runtime.report import (
    SCHEMA_VERSION,
    GateReport,
    LatencyReport,
    ParityReport,
    Report,
    TaskReport,
    Training,
    from_json,
    to_json,
)
from runtime.swap import recover, replacing


@dataclass(frozen=True)
class TaskEvidence:
    """Which of a bundle's tasks was measured.

    Attributes:
        name: of the task.
        switching: what `pipeline.evidence.switching` wrote about all of them.
    """

    name: str
    switching: Path


def assemble(
    evidence: Path,
    bundle: Path,
    gate: Gate,
    made: Mapping[str, Artifact],
    baseline: Report | None,
    task: TaskEvidence | None = None,
) -> Report:
    """Judge the measurements in `evidence`.

    Args:
        evidence: what `pipeline.evidence.measure` wrote.
        bundle: the candidate that was measured.
        gate: thresholds.
        made: the artifacts the report tells digests and sizes of.
        baseline: the report of the last release, where there is one.
        task: the one that was measured, of a bundle with several.

    Raises:
        DataError: a measurement is missing or malformed.
    """
    parity = from_json(ParityReport, (evidence / "parity.json").read_text(encoding="utf-8"))
    answers = from_json(TaskReport, (evidence / "task.json").read_text(encoding="utf-8"))
    latency = from_json(LatencyReport, (evidence / "latency.json").read_text(encoding="utf-8"))
    switching = None
    if task is not None:
        switching = from_json(Switching, (task.switching / "switching.json").read_text(encoding="utf-8"))
    manifest = verify(bundle)
    return Report(
        schema_version=SCHEMA_VERSION,
        name=manifest.name if task is None else f"{manifest.name}-{task.name}",
        parity=parity,
        task=answers,
        latency=latency,
        gate=judge(manifest.precision, gate, parity, answers, latency, baseline, switching),
        lineage={name: artifact.digest for name, artifact in made.items()},
        sizes={name: _size(artifact.path) for name, artifact in made.items()},
        training=_training(made),
        baseline="" if baseline is None else _named(baseline),
    )


def write_report(report: Report, folder: Path) -> None:
    """report.html, report.json and junit.xml, all three or none of them new, whenever it is killed.

    The page also shows the claims.json that lies beside the folder, where there is one of these models, the
    advice.json of the run that the folder is a task's report in, where there is one of this adapter, and what
    the run's rounding says of itself, where the model was exported with it.
    """
    run = folder.parent
    claims, advice = claims_of(run, report.lineage), advice_of(run.parent, report)
    # The tasks of a switchable build share the run that holds their reports.
    rounding = rounding_of(run, report.lineage) or rounding_of(run.parent, report.lineage)
    folder.mkdir(parents=True, exist_ok=True)
    recover(folder)
    with replacing(folder) as fresh:
        (fresh / "report.json").write_text(to_json(report), encoding="utf-8")
        (fresh / "report.html").write_text(draw(report, claims, advice, rounding), encoding="utf-8")
        (fresh / "junit.xml").write_text(junit(report.gate, report.name), encoding="utf-8")


def refuse_unless_passed(gate: GateReport, folder: Path) -> None:
    """Let a passing candidate go on.

    Raises:
        GateError: it did not pass; the message names every check that did not, and where to look.
    """
    if gate.verdict == "pass":
        return
    missed = [check for check in gate.checks if check.verdict != "pass"]
    listed = "; ".join(
        f"{check.name} ({check.subject}): {_figure(check.value)}, "
        f"allowed {check.direction} {check.threshold:g}, {check.reason}"
        for check in missed
    )
    raise GateError(
        f"the candidate is refused, {len(missed)} of {len(gate.checks)} checks did not pass: {listed}. "
        f"Evidence: {folder / 'report.html'}"
    )


def _named(baseline: Report) -> str:
    """A release as a person tells it from another: its name, and the digest of what was measured."""
    digest = baseline.lineage.get("candidate") or baseline.lineage.get("bundle") or ""
    return f"{baseline.name} {digest[:12]}".strip()


def _figure(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4g}"


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and file.name != RECORD)


def _training(made: Mapping[str, Artifact]) -> Training:
    """What the training says of itself, and of the merge what was chosen by measuring."""
    trained = _fields(made.get("adapter"), TRAINING)
    merged = _fields(made.get("merged"), RECORD).get("figures", {})
    figures = {name: float(value) for name, value in trained.items() if isinstance(value, int | float)}
    return Training(
        method=trained.get("method", ""),
        figures=figures,
        layers_of_rank=trained.get("layers_of_rank", {}),
        merged_onto=merged.get("onto", ""),
        kl_merged_onto={onto: found["kl_mean"] for onto, found in merged.get("from_unmerged", {}).items()},
    )


def _fields(artifact: Artifact | None, file: str) -> dict[str, Any]:
    """A JSON object in an artifact's folder, empty where it came from elsewhere."""
    if artifact is None or not (artifact.path / file).exists():
        return {}
    fields: dict[str, Any] = json.loads((artifact.path / file).read_text(encoding="utf-8"))
    return fields
