"""From a config with tasks to its advice: base, bundles, measurements, a record, and pages for people."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline import stages
from pipeline.advise.advice import FILE, Advice, Setting, advice_of
from pipeline.advise.bundles import write_bundles
from pipeline.advise.compare import advise
from pipeline.advise.measure import measure
from pipeline.advise.page import page
from pipeline.config import Config
from pipeline.evidence.admission import write_report
from pipeline.evidence.latency import this_machine
from pipeline.stage import Artifact, Progress, locked, run_stage
from pipeline.stages import Plan
from runtime.errors import StageError, UsageError
from runtime.report import read_report, to_json

NEW_TOKENS = 16
"""Decoded behind the prompt that is timed."""


def record(config: Config, runs: Path, out: Path | None, progress: Progress) -> Advice:
    """Measure both forms of a config's tasks, and write down what was found.

    advice.json lies in the run's folder, and the reports of the tasks that are there are drawn anew with it.

    Args:
        config: with at least one task.
        runs: where stages are kept; the base is made there when it is missing.
        out: a page in Markdown to write as well; an older one is replaced.
        progress: told how it goes.

    Raises:
        UsageError: a build is using the store, or `out` is no place for a file.
        StageError: a measuring process stopped or hangs, or a file cannot be written.
        CockpitError: as the stages of base, data and calibration, and `write_bundles`.
    """
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise UsageError(f"--out {out} is no place for a page; name a file in a folder that exists")
    store = runs / "store"

    def made(plan: Plan) -> Artifact:
        return run_stage(
            plan.stage, store, lambda folder, scratch: plan.work(folder, scratch, progress)
        ).artifact

    # A build beside it would be timed too.
    with locked(store), TemporaryDirectory(prefix=".partial-advise-", dir=store) as name:
        base = made(stages.base(config))
        measured: dict[str, Path] = {}
        if config.export.calibrated or config.export.rounded:
            # As a switchable build does; of what is in it, the forms of matrices alone change a time.
            data = {f"data-{task.name}": made(stages.data(config.of_task(task))) for task in config.tasks}
            count, system = config.export.conversations, config.data.system
            if config.export.calibrated:
                measured["calibration"] = made(stages.calibration(count, system, base, data)).path
            if config.export.rounded:
                measured["rounding"] = made(stages.rounding(config.export, system, base, data)).path
        bundles = write_bundles(config, base.path, measured, Path(name), progress)
        setting = Setting(
            name=config.name,
            machine=this_machine(),
            precision=config.export.precision,
            context=config.export.context,
            threads=config.validate_.threads,
            prompt_tokens=max(config.validate_.prompt_tokens),
            new_tokens=NEW_TOKENS,
            base=base.digest,
        )
        found = measure(
            bundles,
            setting.prompt_tokens,
            setting.new_tokens,
            setting.threads,
            lambda done, total: progress("timing both forms", done, total),
        )
        advice = advise(setting, bundles, found)
        if out is not None:
            _write(out, page(advice))
        _keep(advice, runs / config.name)
    return advice


def _keep(advice: Advice, run: Path) -> None:
    run.mkdir(exist_ok=True)
    _write(run / FILE, to_json(advice))
    for file in sorted((run / "report").glob("*/report.json")):
        report = read_report(file)
        if advice_of(run, report) is not None:
            write_report(report, file.parent)


def _write(path: Path, text: str) -> None:
    """The whole text, or nothing new."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StageError(f"cannot write {path}: {error.strerror}") from error
