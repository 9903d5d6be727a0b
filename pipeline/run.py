"""One run of stages: each is made or reused in the store, and linked under the run's name for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline.stage import Artifact, Progress, StageResult, link, run_stage
from pipeline.stages import Plan
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
class Run:
    """A build under way, in a store that is held by `pipeline.stage.locked`.

    Attributes:
        folder: of links, one for each stage.
        store: of stages.
        observer: told of every stage.
        rebuild: stages to run even if they could be reused.
        made: every stage so far, in order.
    """

    folder: Path
    store: Path
    observer: Observer
    rebuild: frozenset[str]
    made: dict[str, StageResult] = field(default_factory=dict)

    def make(self, name: str, plan: Plan) -> Artifact:
        """Run a stage, or reuse it.

        Raises:
            CockpitError: whatever the stage raises.
        """
        told = self.observer.started(name)
        result = run_stage(
            plan.stage,
            self.store,
            lambda out, scratch: plan.work(out, scratch, told),
            rebuild=name in self.rebuild,
        )
        self.made[name] = result
        link(result.artifact.path, self.folder / name)
        self.observer.finished(name, result)
        return result.artifact

    def forget(self, name: str) -> None:
        """Remove the link to what an earlier build left under a name."""
        (self.folder / name).unlink(missing_ok=True)
