"""Several tasks from one config: a switchable bundle with an adapter for each, or a merged bundle for each.

Base, system prompt and tools are shared, so that one prompt prefix and one grammar serve all tasks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import stages
from pipeline.build import STAGES, build, recipe_of, refuse_unknown
from pipeline.config import Config
from pipeline.data.functions import refuse_unmatched
from pipeline.evidence.admission import TaskEvidence, assemble, refuse_unless_passed, write_report
from pipeline.run import Observer, Run
from pipeline.stage import Artifact, Progress, StageResult, artifact, locked
from pipeline.stages import Label, Origin, Plan
from runtime.errors import GateError
from runtime.report import GateReport, Report

_OF_TASK = ("data", "adapter", "evidence")


@dataclass(frozen=True)
class BuiltTasks:
    """A finished build of several tasks.

    Attributes:
        last: the folder of what was made last: a bundle, unless the build was to stop before.
        reports: task → its evidence and verdict; empty when the build stopped before it.
    """

    last: Path
    reports: Mapping[str, Report]


def build_tasks(
    config: Config,
    runs: Path,
    observer: Observer,
    *,
    until: str = "bundle",
    rebuild: frozenset[str] = frozenset(),
) -> BuiltTasks:
    """Run the stages that are not there yet, for each task of the config.

    Args:
        config: with `[[task]]` tables.
        runs: folder of the store and of the runs.
        observer: told of every stage.
        until: last stage to run; merged: of each task.
        rebuild: stages to run even if they could be reused.

    Raises:
        ConfigError: a task's functions are none of the tools'.
        UsageError: an unknown stage, or another build holds the store.
        GateError: a task did not pass, after all were judged; the message names task and checks.
        CockpitError: whatever a stage raises.
    """
    refuse_unmatched(config)
    if config.switchable:
        return _switchable(config, runs, observer, until, rebuild)
    return _merged(config, runs, observer, until, rebuild)


def _merged(
    config: Config, runs: Path, observer: Observer, until: str, rebuild: frozenset[str]
) -> BuiltTasks:
    """Each task as a build of its own; what they share is made once, and reused."""
    refuse_unknown((until, *rebuild), STAGES)
    reports: dict[str, Report] = {}
    refused: list[str] = []
    last = runs
    for task in config.tasks:
        of_task = config.of_task(task)
        watched = _OfTask(observer, task.name)
        try:
            built = build(of_task, runs, watched, until=until, rebuild=rebuild)
        except GateError as error:
            refused.append(f'task "{task.name}": {error}')
            continue
        last = built.run / list(built.stages)[-1]
        if built.report is not None:
            reports[task.name] = built.report
    _refuse(refused)
    return BuiltTasks(last, reports)


@dataclass(frozen=True)
class _OfTask:
    """Tells an observer which task a stage is of."""

    observer: Observer
    task: str

    def started(self, stage: str) -> Progress:
        return self.observer.started(f"{stage}-{self.task}")

    def finished(self, stage: str, result: StageResult) -> None:
        self.observer.finished(f"{stage}-{self.task}", result)

    def judged(self, report: Report, folder: Path) -> None:
        self.observer.judged(report, folder)


def _switchable(
    config: Config, runs: Path, observer: Observer, until: str, rebuild: frozenset[str]
) -> BuiltTasks:
    tasks = {task.name: config.of_task(task) for task in config.tasks}
    known = _stages(config, tasks)
    refuse_unknown((until, *rebuild), known)
    run = Run(runs / config.name, runs / "store", observer, rebuild)
    with locked(run.store):
        for path in run.folder.glob("*"):
            if path.is_symlink() and path.name not in known:
                run.forget(path.name)  # that of an earlier config
        for name, plan in _plans(config, tasks, run):
            run.make(name, plan)
            if name == until:
                return BuiltTasks(run.folder / name, {})
        reports = _judged(tasks, run)
        candidate = run.made["candidate"].artifact
        run.make("bundle", stages.bundle(candidate, run.folder / "report", _together(reports)))
    return BuiltTasks(run.folder / "bundle", reports)


def _stages(config: Config, tasks: Mapping[str, Config]) -> tuple[str, ...]:
    """The stages of this config, which `until` and `rebuild` may name."""
    trained = (f"{stage}-{task}" for stage in ("data", "adapter") for task in tasks)
    measured = [("calibration", config.export.calibrated), ("rounding", config.export.rounded)]
    shared = (*(name for name, wanted in measured if wanted), "onnx", "adapters", "candidate", "switching")
    return ("base", *trained, *shared, *(f"evidence-{task}" for task in tasks), "bundle")


def _plans(config: Config, tasks: Mapping[str, Config], run: Run) -> Iterator[tuple[str, Plan]]:
    """Every stage but the last, in order; each is made before the next is asked for, which may read it."""

    def made(name: str) -> Artifact:
        return run.made[name].artifact

    yield "base", stages.base(config)
    for task, of_task in tasks.items():
        yield f"data-{task}", stages.data(of_task)
    for task, of_task in tasks.items():
        yield f"adapter-{task}", stages.adapter(of_task, made("base"), made(f"data-{task}"))
    data = {task: made(f"data-{task}") for task in tasks}
    adapters = {task: made(f"adapter-{task}") for task in tasks}
    measured: dict[str, Artifact] = {}
    training = {f"data-{task}": records for task, records in data.items()}
    system = config.data.system
    if config.export.calibrated:
        conversations = config.export.conversations
        yield "calibration", stages.calibration(conversations, system, made("base"), training)
        measured["calibration"] = made("calibration")
    if config.export.rounded:
        yield "rounding", stages.rounding(config.export, system, made("base"), training)
        measured["rounding"] = made("rounding")
    yield "onnx", stages.switchable_onnx(config.export, made("base"), measured)
    yield "adapters", stages.adapters(made("base"), made("onnx"), adapters)
    # From here on a bundle of an earlier build would be taken for this one.
    run.forget("bundle")
    label = _label(config, tasks, run)
    tools = artifact(config.data.tools)
    yield "candidate", stages.candidate(label, made("onnx"), tools, made("adapters"))
    threads = config.validate_.threads
    yield "switching", stages.switching(made("candidate"), data, threads)
    for task in tasks:
        origin = Origin(made("base"), adapters[task], None)
        yield (
            f"evidence-{task}",
            stages.evidence(config.validate_, made("candidate"), origin, data[task], {}, task),
        )


def _label(config: Config, tasks: Mapping[str, Config], run: Run) -> Label:
    recipe = {key: value for key, value in recipe_of(config).items() if key not in ("data", "train")}
    recipe["tasks"] = {
        task: {
            **{key: value for key, value in recipe_of(of_task).items() if key in ("data", "train")},
            "dataset": run.made[f"data-{task}"].artifact.digest,
            "adapter": run.made[f"adapter-{task}"].artifact.digest,
        }
        for task, of_task in tasks.items()
    }
    fingerprint = str(run.made["base"].figures["fingerprint"])
    return Label(config.name, config.data.system, recipe, fingerprint)


def _judged(tasks: Mapping[str, Config], run: Run) -> dict[str, Report]:
    """The report of each task, written to `report/<task>/`.

    Raises:
        GateError: a task did not pass.
    """
    folder = run.folder / "report"
    shutil.rmtree(folder, ignore_errors=True)  # perhaps of other tasks
    reports: dict[str, Report] = {}
    refused: list[str] = []
    for task, of_task in tasks.items():
        made = _own(task, tasks, run)
        measured = TaskEvidence(task, made["switching"].path)
        report = assemble(made["evidence"].path, made["candidate"].path, of_task.gate, made, None, measured)
        write_report(report, folder / task)
        run.observer.judged(report, folder / task)
        try:
            refuse_unless_passed(report.gate, folder / task)
        except GateError as error:
            refused.append(f'task "{task}": {error}')
        reports[task] = report
    _refuse(refused)
    return reports


def _own(task: str, tasks: Iterable[str], run: Run) -> dict[str, Artifact]:
    """What a task was made from, under the names that a build of it alone would give."""
    of_tasks = {f"{stage}-{name}" for stage in _OF_TASK for name in tasks}
    shared = {name: result.artifact for name, result in run.made.items() if name not in of_tasks}
    return shared | {stage: run.made[f"{stage}-{task}"].artifact for stage in _OF_TASK}


def _together(reports: Mapping[str, Report]) -> GateReport:
    """The checks of all tasks, each under its task's name; they have passed."""
    checks = tuple(
        replace(check, name=f"{task}.{check.name}")
        for task, report in reports.items()
        for check in report.gate.checks
    )
    precision = next(iter(reports.values())).gate.precision
    return GateReport(precision, checks, "pass", None)


def _refuse(refused: Sequence[str]) -> None:
    if refused:
        raise GateError("; ".join(refused))
