"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A TOML config; configs/ has some.", show_default=False)
]
System = Annotated[
    str | None,
    typer.Option(help="System prompt that the model was trained with; unset takes the default."),
]
BundleFolder = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Such as runs/smollm2-135m/bundle.", show_default=False)
]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="The directory to make; it must not exist yet.")
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where stages and runs are kept.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a config value, as in train.r=32; repeatable."),
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="REPORT", help="report.json of the last release, to be judged against as well."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of the model.")]
TaskOfBundle = Annotated[
    str | None, typer.Option("--task", help="Of a switchable bundle; unset asks its bare base.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="A directory of yours where what makes the next load faster is kept.",
        show_default=False,
    ),
]
Deadline = Annotated[
    float | None,
    typer.Option(
        "--deadline", metavar="SECONDS", help="Stop an answer that takes longer.", show_default=False
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
