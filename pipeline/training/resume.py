"""Which training checkpoints may be trusted: those that are whole, and made from the same inputs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

KEY = "key"
COMPLETE = "COMPLETE"


def claim(work: Path, key: str) -> None:
    """Keep what an earlier run with the same key left in a folder; remove what any other run left."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / KEY
    if not file.is_file() or file.read_text(encoding="utf-8") != key:
        for path in work.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        file.write_text(key, encoding="utf-8")
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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
