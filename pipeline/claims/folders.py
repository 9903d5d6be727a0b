"""What a build left behind. Light, so that a run that is not there is said before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UsageError


@dataclass(frozen=True)
class Folders:
    """A run's directories.

    Attributes:
        run: the run itself.
        base: the base checkpoint.
        data: records and tools.
        adapter: what was trained on base and data.
        merged: the checkpoint of base and adapter.
    """

    run: Path
    base: Path
    data: Path
    adapter: Path
    merged: Path


def folders(run: Path, file: Path) -> Folders:
    """The directories of a run.

    Args:
        run: its folder.
        file: the config file, for the error that names the command to run first.

    Raises:
        UsageError: the run lacks a directory that is needed.
    """
    found = {name: run / name for name in ("base", "data", "adapter", "merged")}
    if missing := [name for name, folder in found.items() if not folder.is_dir()]:
        raise UsageError(
            f"{run} has no {', '.join(missing)}, so there is nothing to check claims on; "
            f"run `cockpit build {file}` first"
        )
    return Folders(run, **found)
