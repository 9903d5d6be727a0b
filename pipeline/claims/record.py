"""From a built run to claims.json beside its report, the report drawn anew, and a page for people."""

from __future__ import annotations

from pathlib import Path

from pipeline.claims.finding import FILE, Claims
from pipeline.claims.folders import Folders
from pipeline.claims.measure import check_claims
from pipeline.claims.page import page
from pipeline.claims.subject import subject
from pipeline.config import Config
from pipeline.evidence.admission import write_report
from pipeline.stage import Progress, locked
from runtime.errors import StageError, UsageError
from runtime.report import read_report, to_json


def record(
    config: Config, folders: Folders, store: Path, out: Path | None, progress: Progress
) -> tuple[Claims, Path]:
    """Check every claim and write down what was found.

    Args:
        config: of a run that was built.
        folders: of that run.
        store: where stages are kept.
        out: a page in Markdown to write as well; an older one is replaced.
        progress: told how it goes.

    Returns:
        The findings, and the JSON file that holds them.

    Raises:
        UsageError: a build is using the store, or `out` is no place for a file.
        StageError: a file cannot be written.
        CockpitError: as `pipeline.claims.measure.check_claims`.
    """
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise UsageError(f"--out {out} is no place for a page; name a file in a folder that exists")
    # A build beside it would be timed too, and might put another adapter in place.
    with locked(store):
        found = check_claims(config, subject(config, folders), progress)
        written = folders.run / FILE
        _write(written, to_json(found))
        if out is not None:
            _write(out, page(found))
        report = folders.run / "report"
        if (report / "report.json").is_file():
            write_report(read_report(report / "report.json"), report)
    return found, written


def _write(path: Path, text: str) -> None:
    """The whole text, or nothing new."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StageError(f"cannot write {path}: {error.strerror}") from error
