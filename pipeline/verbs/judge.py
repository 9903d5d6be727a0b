"""Verbs that judge a bundle and show what was found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.verbs.options import Baseline, BundleFolder, Json, Out, Overrides
from runtime.errors import UsageError

verbs = typer.Typer()
console = Console()


@verbs.command(
    epilog="Example: cockpit validate candidate --base base --adapter adapter --data test.jsonl --out verdict"
)
def validate(
    bundle: BundleFolder,
    base: Annotated[Path, typer.Option(help="The base checkpoint.", show_default=False)],
    adapter: Annotated[Path, typer.Option(help="The adapter that was merged into it.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Test records, JSON Lines.", show_default=False)],
    out: Out,
    merged: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint that was exported, so that a bad merge is told from a bad export; "
            "unset merges again."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Of a switchable bundle, the task that the adapter is for.", show_default=False),
    ] = None,
    baseline: Baseline = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=BUNDLE", help="Another bundle to time in the same rounds; repeatable."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help=r"Take \[validate] and \[gate] from this config; unset takes the defaults."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Measure a bundle against the unmerged model and judge it; exit code 4 when a gate fails."""
    from pipeline.config_file import load_validation
    from pipeline.console import BuildDisplay, StageDisplay
    from pipeline.evidence.admission import refuse_unless_passed
    from pipeline.evidence.validate import validate as run_validate
    from pipeline.stage import artifact
    from pipeline.stages import Origin
    from runtime.report import read_report

    validation, gate = load_validation(config, tuple(overrides or ()))
    with StageDisplay(console, "evidence") as told:
        found = run_validate(
            validation,
            gate,
            bundle=artifact(bundle),
            origin=Origin(artifact(base), artifact(adapter), None if merged is None else artifact(merged)),
            data=artifact(data),
            out=out,
            progress=told,
            others={name: artifact(path) for name, path in _named_bundles(beside or []).items()},
            baseline=None if baseline is None else read_report(baseline),
            task=task,
        )
    with BuildDisplay(console) as display:
        display.judged(found, out / "report")
    refuse_unless_passed(found.gate, out / "report")


@verbs.command(epilog="Example: cockpit report runs/smollm2-135m")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)],
    task: Annotated[str | None, typer.Option(help="Of a run with several tasks, the one.")] = None,
    as_json: Json = False,
) -> None:
    """Draw report.html and junit.xml again from a run's report.json, and show the verdict."""
    from pipeline.console import BuildDisplay
    from pipeline.evidence.admission import write_report
    from runtime.report import read_report, to_json

    folder = run / "report" if task is None else run / "report" / task
    found = read_report(folder / "report.json")
    write_report(found, folder)
    if as_json:
        sys.stdout.write(to_json(found.gate))
        return
    with BuildDisplay(console) as display:
        display.judged(found, folder)


def _named_bundles(beside: list[str]) -> dict[str, Path]:
    """`NAME=BUNDLE` options as names and folders."""
    found: dict[str, Path] = {}
    for text in beside:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder) or name in {"unmerged", "merged", "bundle", *found}:
            raise UsageError(f'--beside takes NAME=BUNDLE with a name of its own, not "{text}"')
        found[name] = Path(folder)
    return found
