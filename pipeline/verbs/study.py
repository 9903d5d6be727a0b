"""Verbs that study a base, a config or a machine, and make no bundle."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.verbs.options import ConfigFile, Json, Overrides, Runs
from runtime.errors import ConfigError

verbs = typer.Typer()
console = Console()


@verbs.command(epilog="Example: cockpit claims configs/smollm2-135m.toml --out docs/claims.md")
def claims(
    config: ConfigFile,
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    as_json: Json = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write them as a Markdown page, too.")
    ] = None,
) -> None:
    """What the reference guide says of LoRA, beside what is found on a run that was built."""
    from pipeline.claims.folders import folders
    from pipeline.config_file import load_config

    settings = load_config(config, tuple(overrides or ()))
    built = folders(runs / settings.name, config)
    # Heavy: a run that is not there has been refused by now.
    from pipeline.claims.record import record
    from pipeline.claims.terminal import claims_table
    from pipeline.console import StageDisplay
    from runtime.report import to_json

    with StageDisplay(Console(stderr=True) if as_json else console, "claims") as told:
        found, written = record(settings, built, runs / "store", out, told)
    if as_json:
        sys.stdout.write(to_json(found))
        return
    console.print(claims_table(found))
    console.print(f"claims: {written}", highlight=False)


@verbs.command(epilog="Example: cockpit advise configs/smollm2-135m-tasks.toml --out advice.md")
def advise(
    config: ConfigFile,
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    as_json: Json = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it as a Markdown page, too.")
    ] = None,
) -> None:
    """What the tasks of a config cost merged and switchable, measured here before anything is trained."""
    from pipeline.config_file import load_config

    settings = load_config(config, tuple(overrides or ()))
    if not settings.tasks:
        raise ConfigError(
            f"{config} has no tasks to compare the forms for; add a table for each, and one is enough:\n\n"
            '[[task]]\nname = "navigation"\nfunctions = ["nav_*"]'
        )
    if settings.mode == "merged":  # what cannot be switched is refused as a switchable build refuses it
        settings = load_config(config, (*(overrides or ()), 'mode="switchable"'))
    # Heavy: a config that cannot be compared has been refused by now.
    from pipeline.advise.advice import FILE
    from pipeline.advise.page import table
    from pipeline.advise.record import record
    from pipeline.advise.text import UNMEASURED, reasons
    from pipeline.console import StageDisplay
    from runtime.report import to_json

    with StageDisplay(Console(stderr=True) if as_json else console, "advise") as told:
        found = record(settings, runs, out, told)
    if as_json:
        sys.stdout.write(to_json(found))
        return
    console.print(table(found))
    for line in (*reasons(found, "en"), UNMEASURED["en"]):
        console.print(line, highlight=False, markup=False)
    console.print(f"advice: {runs / settings.name / FILE}", highlight=False)


@verbs.command(epilog="Example: cockpit doctor --json")
def doctor(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """What this machine can do, what is missing and how to get it."""
    from pipeline.console import doctor_table
    from pipeline.doctor import examine, healthy

    findings = examine(runs)
    if as_json:
        sys.stdout.write(
            json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=1) + "\n"
        )
    else:
        console.print(doctor_table(findings))
    if not healthy(findings):
        raise typer.Exit(3)
