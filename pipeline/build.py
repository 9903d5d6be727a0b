"""The stages in order, reused by content: config in, admitted bundle out.

`runs/store/` holds every stage ever made, by key; `runs/<name>/` holds one link per stage. Nothing is
named `bundle` there unless it passed its gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline import stages
from pipeline.config import Config
from pipeline.evidence.admission import assemble, refuse_unless_passed, write_report
from pipeline.evidence.baseline import refuse_incomparable
from pipeline.evidence.latency import this_machine
from pipeline.stage import Progress, StageResult, link, locked, run_stage
from pipeline.stages import Label, Origin, Plan
from runtime.errors import UsageError
from runtime.report import Report


class Observer(Protocol):
    """Whoever watches a build."""

    def started(self, stage: str) -> Progress:
        """A stage begins; the answer is told how it goes."""

    def finished(self, stage: str, result: StageResult) -> None:
        """A stage is done or was reused."""

    def judged(self, report: Report, folder: Path) -> None:
        """The gates have spoken, and the report lies in `folder`."""


@dataclass(frozen=True)
class Built:
    """A finished build.

    Attributes:
        run: the folder of links.
        stages: every stage that was made or reused, in order.
        report: the evidence and the verdict; None when the build stopped before it.
    """

    run: Path
    stages: Mapping[str, StageResult]
    report: Report | None


Made = Mapping[str, StageResult]

_PLANS: Mapping[str, Callable[[Config, Made], Plan | None]] = {
    "base": lambda config, made: stages.base(config),
    "data": lambda config, made: stages.data(config),
    "adapter": lambda config, made: stages.adapter(config, made["base"].artifact, made["data"].artifact),
    "merged": lambda config, made: (
        stages.merged_qlora(
            made["base"].artifact,
            made["adapter"].artifact,
            made["data"].artifact,
            config.data.system,
            config.validate_.threads,
        )
        if config.train.method == "qlora"
        else stages.merged(made["base"].artifact, made["adapter"].artifact)
    ),
    "calibration": lambda config, made: (
        stages.calibration(
            config.export.calibration_conversations,
            config.data.system,
            made["merged"].artifact,
            made["data"].artifact,
        )
        if config.export.calibrated
        else None
    ),
    "onnx": lambda config, made: stages.onnx(
        config.export,
        made["merged"].artifact,
        made["calibration"].artifact if "calibration" in made else None,
    ),
    "candidate": lambda config, made: stages.candidate(
        _label(config, made), made["onnx"].artifact, made["data"].artifact
    ),
    "evidence": lambda config, made: stages.evidence(
        config.validate_,
        made["candidate"].artifact,
        Origin(*(made[name].artifact for name in ("base", "adapter", "merged"))),
        made["data"].artifact,
        {},
    ),
}
STAGES = (*_PLANS, "bundle")
_PATHS = frozenset({"path", "tools", "train", "validation", "test"})


def build(
    config: Config,
    runs: Path,
    observer: Observer,
    *,
    until: str = "bundle",
    rebuild: frozenset[str] = frozenset(),
    baseline: Report | None = None,
) -> Built:
    """Run the stages that are not there yet.

    Args:
        config: what to build.
        runs: folder of the store and of the run.
        observer: told of every stage.
        until: last stage to run.
        rebuild: stages to run even if they could be reused.
        baseline: the report of the last release, to be judged against as well.

    Raises:
        UsageError: an unknown stage, another build holds the store, or a baseline of another machine.
        GateError: the candidate did not pass; the report says why, and nothing is named `bundle`.
        CockpitError: whatever a stage raises.
    """
    for name in (until, *rebuild):
        if name not in STAGES:
            raise UsageError(f'there is no stage "{name}"; stages: {", ".join(STAGES)}')
    if baseline is not None:
        refuse_incomparable(baseline, this_machine(), config.validate_.threads)
    run, store = runs / config.name, runs / "store"
    made: dict[str, StageResult] = {}

    def make(name: str, plan: Plan) -> None:
        told = observer.started(name)
        made[name] = run_stage(
            plan.stage, store, lambda out, scratch: plan.work(out, scratch, told), rebuild=name in rebuild
        )
        link(made[name].artifact.path, run / name)
        observer.finished(name, made[name])

    with locked(store):
        for name, planned in _PLANS.items():
            if name == "candidate":
                # From here on a bundle of an earlier build would be taken for this one.
                (run / "bundle").unlink(missing_ok=True)
            plan = planned(config, made)
            if plan is not None:
                make(name, plan)
            else:
                (run / name).unlink(missing_ok=True)  # that of an earlier config
            if name == until:
                return Built(run, made, None)
        artifacts = {name: result.artifact for name, result in made.items()}
        report = assemble(
            made["evidence"].artifact.path, made["candidate"].artifact.path, config.gate, artifacts, baseline
        )
        write_report(report, run / "report")
        observer.judged(report, run / "report")
        refuse_unless_passed(report.gate, run / "report")
        make("bundle", stages.bundle(made["candidate"].artifact, run / "report", report.gate))
    return Built(run, made, report)


def _label(config: Config, made: Made) -> Label:
    """The candidate's label: the recipe is what shaped the model, not how it is judged."""
    recipe = config.model_dump(
        mode="json", include={"seed", "base", "data", "train", "export"}, exclude_none=True
    )
    for table in ("base", "data"):
        # Where a folder lies on the build host is nobody's business in a car.
        recipe[table] = {key: value for key, value in recipe[table].items() if key not in _PATHS}
    return Label(config.name, config.data.system, recipe, str(made["base"].figures["fingerprint"]))
