"""The verdict on a bundle from anywhere: measure and judge in one new directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import stages
from pipeline.config import Gate, Validate
from pipeline.evidence.admission import TaskEvidence, assemble, write_report
from pipeline.evidence.baseline import refuse_incomparable
from pipeline.evidence.latency import this_machine
from pipeline.evidence.switching import measure_switching
from pipeline.stage import Artifact, Progress, write_stage
from pipeline.stages import Origin
from runtime.report import Report, read_report


def validate(
    validation: Validate,
    gate: Gate,
    *,
    bundle: Artifact,
    origin: Origin,
    data: Artifact,
    out: Path,
    progress: Progress,
    others: Mapping[str, Artifact] | None = None,
    baseline: Report | None = None,
    task: str | None = None,
) -> Report:
    """Measure a bundle against base + adapter and judge it.

    Args:
        validation: how much evidence to gather.
        gate: thresholds.
        bundle: a candidate or an admitted bundle.
        origin: what it was made from.
        data: test records, a JSON Lines file or a folder with `test.jsonl`.
        out: the directory to make: measurements, and `report/` with the verdict. It is made whatever
            the verdict; `pipeline.evidence.admission.refuse_unless_passed` turns that into an error.
        progress: told how it goes.
        others: more bundles to time beside it, by name.
        baseline: the report of the last release, to be judged against as well.
        task: of a switchable bundle, the one whose adapter is `origin`'s.

    Raises:
        UsageError: a baseline that was measured on another machine or with other versions.
        TaskError: the bundle has no such task.
        CockpitError: it could not be measured.
    """
    if baseline is not None:
        refuse_incomparable(baseline, this_machine(), validation.threads)
    plan = stages.evidence(validation, bundle, origin, data, others or {}, task)
    tests = data.path / "test.jsonl" if data.path.is_dir() else data.path
    made = {"base": origin.base, "adapter": origin.adapter, "bundle": bundle}

    def work(folder: Path, scratch: Path) -> Mapping[str, Any]:
        figures = plan.work(folder, scratch, progress)
        measured = None
        if task is not None:
            measure_switching(bundle.path, {task: tests}, validation.threads, folder, progress)
            measured = TaskEvidence(task, folder)
        report = assemble(folder, bundle.path, gate, made, baseline, measured)
        write_report(report, folder / "report")
        return figures

    write_stage(plan.stage, out, work)
    return read_report(out / "report" / "report.json")
