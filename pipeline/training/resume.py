"""Which training checkpoints may be trusted: those that are whole, and made from the same inputs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.errors import ConfigError

SETTINGS = "settings.json"
"""What shaped the training whose checkpoints a folder holds."""

COMPLETE = "COMPLETE"


def claim(work: Path, settings: Mapping[str, Any]) -> None:
    """Keep what an interrupted run of the same training left in a folder; refuse what another one left.

    Args:
        work: for checkpoints.
        settings: JSON value of all that shapes the training; tables may be nested.

    Raises:
        ConfigError: the folder holds whole checkpoints of another training; says each difference.
    """
    work.mkdir(parents=True, exist_ok=True)
    file = work / SETTINGS
    there = _read(file)
    if newest_complete(work) is not None and there is not None:
        differences = list(_differences(there, _flat(settings)))
        if differences:
            raise ConfigError(
                f"{work} holds an unfinished training with other settings: {'; '.join(differences)}; "
                "name another folder or delete it"
            )
    else:
        for path in work.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        file.write_text(json.dumps(_flat(settings), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for folder in work.glob("checkpoint-*"):
        if not (folder / COMPLETE).is_file():
            shutil.rmtree(folder)


def mark_complete(folder: Path) -> None:
    """Put the files of a checkpoint on the disk, and only then say so."""
    for path in (*folder.rglob("*"), folder):
        _flush(path)
    (folder / COMPLETE).touch()
    _flush(folder / COMPLETE)
    _flush(folder)


def newest_complete(work: Path) -> Path | None:
    """The whole checkpoint with the most steps."""
    whole = [marker.parent for marker in work.glob(f"checkpoint-*/{COMPLETE}")]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def _read(file: Path) -> dict[str, Any] | None:
    """The settings in a file; none where it is missing or cut short."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one: `train.r`."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(there.keys() | here.keys()):
        one, other = (json.dumps(side[name]) if name in side else "unset" for side in (there, here))
        if one != other:
            yield f"{name}: {one} there, {other} here"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
