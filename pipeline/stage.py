"""The stage contract: digests in, one new directory out, a record, one rename.

A store holds one directory per stage and key. The key is a digest of all that shapes the output: the
stage's config, the digests of its inputs, its code, the libraries it calls. A stage is reused when its
key is present *and* its files still hash to what its record says. Work happens under a name that
starts with a dot and becomes visible by one rename after everything is on disk, so a kill at any
moment leaves either a whole stage or none.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.provenance import code_digest, directory_files, file_digest, json_digest, versions
from runtime.errors import StageError, UsageError

RECORD = "stage.json"

Progress = Callable[[str, int, int], None]
"""Called with a message, how much is done and how much there is (0 when that is not known)."""

Work = Callable[[Path, Path], Mapping[str, Any]]
"""Called with an empty output directory and a scratch directory; returns the stage's figures."""


@dataclass(frozen=True)
class Artifact:
    """A directory (or a single file) that a stage reads.

    Attributes:
        path: where it is.
        digest: over its files, its own record left out.
        lineage: what it was made from, directly or not: name → digest.
    """

    path: Path
    digest: str
    lineage: Mapping[str, str]


@dataclass(frozen=True)
class StageResult:
    """A finished stage.

    Attributes:
        artifact: what later stages read.
        reused: whether it was there already.
        seconds: time it took when it was made.
        figures: what the stage has to say about itself.
    """

    artifact: Artifact
    reused: bool
    seconds: float
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """What a stage is made of, before it is run.

    Attributes:
        name: names the directory.
        module: the module whose code (and what it imports) shapes the output.
        libraries: distributions whose versions shape the output.
        config: JSON value of the settings that shape the output, and no others.
        inputs: name → what it reads.
    """

    name: str
    module: str
    libraries: tuple[str, ...]
    config: Any
    inputs: Mapping[str, Artifact]

    def key(self) -> dict[str, Any]:
        """Everything that decides the output."""
        return {
            "stage": self.name,
            # As it will read back from the record: a tuple is a list there.
            "config": json.loads(json.dumps(self.config)),
            "inputs": {name: artifact.digest for name, artifact in self.inputs.items()},
            "code": code_digest(self.module),
            "libraries": dict(versions(self.libraries)),
        }

    def lineage(self) -> dict[str, str]:
        """What the output descends from."""
        found: dict[str, str] = {}
        for name, artifact in self.inputs.items():
            found |= {**artifact.lineage, name: artifact.digest}
        return dict(sorted(found.items()))


def artifact(path: Path) -> Artifact:
    """A directory or file made by a stage, or by another tool, as a stage's input.

    Raises:
        UsageError: there is nothing at `path`.
    """
    if path.is_file():
        return Artifact(path, file_digest(path), {})
    if not path.is_dir():
        raise UsageError(f"there is nothing at {path}; check the path")
    try:
        lineage = json.loads((path / RECORD).read_text(encoding="utf-8"))["lineage"]
    except (OSError, ValueError, KeyError):
        lineage = {}  # made by another tool: it has no history that we know
    return Artifact(path, json_digest(directory_files(path, exclude=(RECORD,))), lineage)


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold a store for one build; what a killed build left unfinished is removed.

    Raises:
        UsageError: another build is using the store.
    """
    store.mkdir(parents=True, exist_ok=True)
    with (store / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another build is using {store}; wait for it, or give --runs another folder"
            ) from None
        for leftover in store.glob(".partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def run_stage(stage: Stage, store: Path, work: Work, *, rebuild: bool = False) -> StageResult:
    """Run a stage in a store held by `locked`, or reuse it.

    Args:
        stage: what it is made of.
        store: the folder of all stages.
        work: see `Work`.
        rebuild: run even if the stage could be reused.

    Raises:
        CockpitError: as `write_stage`.
    """
    key = stage.key()
    name = f"{stage.name}-{json_digest(key)[:16]}"
    final = store / name
    if not rebuild and (kept := reusable(final, key)) is not None:
        return kept
    if final.exists():
        shutil.rmtree(final)
    return write_stage(stage, final, work)


def write_stage(stage: Stage, final: Path, work: Work) -> StageResult:
    """Make one new stage directory: written beside its final name, and moved there when it is whole.

    Args:
        stage: what it is made of.
        final: must not exist.
        work: see `Work`; its scratch directory survives a kill, so that a long stage can resume.

    Raises:
        UsageError: `final` exists.
        StageError: the disk is full or cannot be written.
        CockpitError: whatever the stage itself raises; nothing is left under the final name.
    """
    if final.exists():
        raise UsageError(f"{final} exists; remove it or choose another directory, nothing is written over")
    partial, scratch = (final.with_name(f".{kind}-{final.name}") for kind in ("partial", "work"))
    started = time.monotonic()
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        scratch.mkdir(exist_ok=True)
        figures = work(partial, scratch)
        record = {
            **stage.key(),
            "lineage": stage.lineage(),
            "seconds": round(time.monotonic() - started, 3),
            "figures": dict(figures),
            "outputs": directory_files(partial),
        }
        (partial / RECORD).write_text(
            json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )
        _flush(partial)
        partial.rename(final)
    except OSError as error:
        raise StageError(f"stage {stage.name}: {_say(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)
    return _result(final, record, reused=False)


def reusable(directory: Path, key: Mapping[str, Any]) -> StageResult | None:
    """The finished stage in a directory if it was made from `key` and is undamaged, else None."""
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        made_from_key = all(record[name] == value for name, value in key.items())
        whole = made_from_key and directory_files(directory, exclude=(RECORD,)) == record["outputs"]
        return _result(directory, record, reused=True) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a record that cannot be read is a stage that is not there


def _result(directory: Path, record: Mapping[str, Any], *, reused: bool) -> StageResult:
    made = Artifact(directory, json_digest(record["outputs"]), record["lineage"])
    return StageResult(made, reused, record["seconds"], record["figures"])


def link(target: Path, name: Path) -> None:
    """Point the link `name` at `target` by one rename, with a path that moves with both."""
    name.parent.mkdir(parents=True, exist_ok=True)
    fresh = name.with_name(f".{name.name}.link")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(target, name.parent))
    fresh.replace(name)


def _flush(directory: Path) -> None:
    """Have the kernel put every file below a directory on disk before its name appears."""
    for path in (*directory.rglob("*"), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _say(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}; free some space and run the build again: finished stages are kept"
    return f"{error.strerror or error}{where}"
