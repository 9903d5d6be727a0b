"""The stages in order, reused by content: config in, admitted bundle out.

`runs/store/` holds every stage ever made, by key; `runs/<name>/` holds one link per stage. Nothing is
named `bundle` there unless it passed its gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import stages
from pipeline.config import Config
from pipeline.evidence.admission import assemble, refuse_unless_passed, write_report
from pipeline.evidence.baseline import refuse_incomparable
from pipeline.evidence.latency import this_machine
from pipeline.run import Observer, Run
from pipeline.stage import StageResult, locked
from pipeline.stages import Label, Origin, Plan
from runtime.errors import UsageError
from runtime.report import Report


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
            config.export.conversations,
            config.data.system,
            made["merged"].artifact,
            {"data": made["data"].artifact},
        )
        if config.export.calibrated
        else None
    ),
    "rounding": lambda config, made: (
        stages.rounding(
            config.export,
            config.data.system,
            made["merged"].artifact,
            {"data": made["data"].artifact},
            (made["base"].artifact, made["adapter"].artifact),
        )
        if config.export.rounded
        else None
    ),
    "onnx": lambda config, made: stages.onnx(
        config.export,
        made["merged"].artifact,
        {name: made[name].artifact for name in ("calibration", "rounding") if name in made},
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
        UsageError: a config of several tasks, an unknown stage, another build holds the store, or a
            baseline of another machine.
        GateError: the candidate did not pass; the report says why, and nothing is named `bundle`.
        CockpitError: whatever a stage raises.
    """
    if config.tasks:
        raise UsageError("this config has several tasks, which only `cockpit build` makes")
    refuse_unknown((until, *rebuild), STAGES)
    if baseline is not None:
        refuse_incomparable(baseline, this_machine(), config.validate_.threads)
    run = Run(runs / config.name, runs / "store", observer, rebuild)
    made = run.made
    with locked(run.store):
        for name, planned in _PLANS.items():
            if name == "candidate":
                # From here on a bundle of an earlier build would be taken for this one.
                run.forget("bundle")
            plan = planned(config, made)
            if plan is not None:
                run.make(name, plan)
            else:
                run.forget(name)
            if name == until:
                return Built(run.folder, made, None)
        artifacts = {name: result.artifact for name, result in made.items()}
        report = assemble(
            made["evidence"].artifact.path, made["candidate"].artifact.path, config.gate, artifacts, baseline
        )
        write_report(report, run.folder / "report")
        observer.judged(report, run.folder / "report")
        refuse_unless_passed(report.gate, run.folder / "report")
        run.make("bundle", stages.bundle(made["candidate"].artifact, run.folder / "report", report.gate))
    return Built(run.folder, made, report)


def refuse_unknown(named: Iterable[str], known: Sequence[str]) -> None:
    """Refuse names of stages that there are none of.

    Raises:
        UsageError: there is one.
    """
    for name in named:
        if name not in known:
            raise UsageError(f'there is no stage "{name}"; stages: {", ".join(known)}')


def recipe_of(config: Config) -> dict[str, Any]:
    """What shaped a model, not how it is judged, nor where a folder lies on the build host."""
    recipe = config.model_dump(
        mode="json", include={"seed", "base", "data", "train", "export"}, exclude_none=True
    )
    for table in ("base", "data"):
        recipe[table] = {key: value for key, value in recipe[table].items() if key not in _PATHS}
    if not config.switchable:
        del recipe["export"]["most_rank"]
    return recipe


def _label(config: Config, made: Made) -> Label:
    fingerprint = str(made["base"].figures["fingerprint"])
    return Label(config.name, config.data.system, recipe_of(config), fingerprint)
