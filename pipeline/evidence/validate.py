"""The verdict on a bundle from anywhere: measure and judge in one new directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import stages
from pipeline.config import Gate, Validate
from pipeline.evidence.admission import assemble, write_report
from pipeline.stage import Artifact, Progress, write_stage
from runtime.report import Report, read_report


def validate(
    validation: Validate,
    gate: Gate,
    *,
    bundle: Artifact,
    base: Artifact,
    adapter: Artifact,
    data: Artifact,
    out: Path,
    progress: Progress,
) -> Report:
    """Measure a bundle against base + adapter and judge it.

    Args:
        validation: how much evidence to gather.
        gate: thresholds.
        bundle: a candidate or an admitted bundle.
        base: the base checkpoint.
        adapter: the adapter that was trained on it.
        data: test records, a JSON Lines file or a folder with `test.jsonl`.
        out: the directory to make: measurements, and `report/` with the verdict. It is made whatever
            the verdict; `pipeline.evidence.admission.refuse_unless_passed` turns that into an error.
        progress: told how it goes.

    Raises:
        CockpitError: it could not be measured.
    """
    plan = stages.evidence(validation, bundle, base, adapter, data)
    made = {"base": base, "adapter": adapter, "bundle": bundle}

    def work(folder: Path, scratch: Path) -> Mapping[str, Any]:
        figures = plan.work(folder, scratch, progress)
        write_report(assemble(folder, bundle.path, gate, made), folder / "report")
        return figures

    write_stage(plan.stage, out, work)
    return read_report(out / "report" / "report.json")
