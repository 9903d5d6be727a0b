"""What a person sees while a build runs, and at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from pipeline.build import Built
from pipeline.doctor import Finding
from pipeline.evidence.report.terminal import summary_table, verdict_table
from pipeline.stage import StageResult
from pipeline.task_build import BuiltTasks
from runtime.report import Report


class StageDisplay:
    """A progress bar for one stage; on anything but a terminal, one line when its message changes.

    Use as a context manager; calling it reports progress.
    """

    def __init__(self, console: Console, stage: str) -> None:
        self._console, self._stage, self._said = console, stage, ""
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[stage]:<10}[/bold]"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, stage=stage)

    def __enter__(self) -> StageDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, message: str, done: int, total: int) -> None:
        """Show how far the stage is: see `pipeline.stage.Progress`."""
        self._bar.update(self._task, description=message, completed=done, total=total or None)
        what = message.partition(",")[0]
        if not self._console.is_terminal and what != self._said:
            self._said = what
            self._console.print(f"{self._stage:<10} {message}", highlight=False)


class BuildDisplay:
    """Watches a build: a bar for the stage under way, a line for each that is done.

    Use as a context manager, so that a stage that fails takes its bar with it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._display: StageDisplay | None = None

    def __enter__(self) -> BuildDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def started(self, stage: str) -> StageDisplay:
        """A bar for the stage."""
        self._display = StageDisplay(self._console, stage).__enter__()
        return self._display

    def finished(self, stage: str, result: StageResult) -> None:
        """A line that stays."""
        self._close()
        what = "[dim]reused[/dim]" if result.reused else f"{result.seconds:.1f} s"
        self._console.print(f"[green]✓[/green] {stage:<10} {what}", highlight=False)

    def judged(self, report: Report, folder: Path) -> None:
        """The gate table, whatever the verdict."""
        self._console.print(verdict_table(report))
        self._console.print(f"report: {folder / 'report.html'}", highlight=False)

    def summarize_tasks(self, built: BuiltTasks) -> None:
        """The summary table of each task, and where things are."""
        for report in built.reports.values():
            self._console.print(summary_table(report))
        self._console.print(f"{built.last.name}: {built.last}", highlight=False)

    def _close(self) -> None:
        if self._display is not None:
            self._display.__exit__(None, None, None)
            self._display = None

    def summarize(self, built: Built) -> None:
        """The summary table and where things are."""
        if built.report is None:
            last = list(built.stages)[-1]
            self._console.print(f"{last}: {built.run / last}", highlight=False)
            return
        self._console.print(summary_table(built.report))
        self._console.print(f"bundle: {built.run / 'bundle'}", highlight=False)


def doctor_table(findings: Sequence[Finding]) -> Table:
    """What was found, and what to do."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("subject", style="bold")
    table.add_column("found")
    table.add_column("to do")
    marks = {"ok": "[green]✓[/green]", "missing": "[red]✗[/red]", "note": "[yellow]·[/yellow]"}
    for finding in findings:
        table.add_row(marks[finding.status], finding.subject, finding.detail, escape(finding.remedy))
    return table
