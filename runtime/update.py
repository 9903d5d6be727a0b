"""A delta into a bundle: verified whole, then in place in one step, or not at all.

A process that has the old bundle open keeps it: its files stay as they are under other names, or without one,
until the process ends.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from runtime import swap
from runtime.adapters import load_adapter
from runtime.delta import REPORTS, Delta, adapter_files, foreign_parts, target, verify_delta
from runtime.errors import BundleError, TaskError, UsageError
from runtime.manifest import MANIFEST, AdapterEntry, Manifest, manifest_text, parse, verify
from runtime.sites import ADAPTERS, read_sites, record_name


def install(bundle: Path | str, delta: Path | str, unproven: bool = False) -> Manifest:
    """Put an adapter into a bundle, or a newer one in the place of the old.

    A delta that is installed already changes nothing, so that an install that was cut off may be repeated.

    Args:
        bundle: the bundle's directory; no link.
        delta: what `cockpit package --adapter-for` made.
        unproven: whether an adapter without evidence of its own may be installed.

    Returns:
        What bundle.json says now.

    Raises:
        BundleError: bundle or delta is damaged; the delta is for another bundle, does not fit its graph, has
            a task that is there, or has no evidence; or the disk refuses. Nothing was changed then.
        UsageError: the bundle is a link.
    """
    directory, source = _no_link(Path(bundle)), Path(delta)
    with swap.alone(directory):
        manifest = verify(directory)
        found = verify_delta(source)
        entry = _entry(directory, manifest, source, found, unproven)
        if entry in (manifest.adapters or ()):
            return manifest
        kept = _without(manifest, found.task)
        added = {_place(found, name): (name, file) for name, file in found.files.items()}
        if taken := sorted(kept.files.keys() & added.keys()):
            raise BundleError("the bundle has files in the adapter's place; package it again:", taken)
        files = kept.files | {place: file for place, (_, file) in added.items()}
        entries = tuple(sorted((*(kept.adapters or ()), entry), key=lambda one: one.name))

        def fill(fresh: Path) -> None:
            for place, (name, _) in added.items():
                (fresh / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, fresh / place)

        return _write(directory, replace(kept, files=files, adapters=entries), set(kept.files), fill)


def uninstall(bundle: Path | str, task: str) -> Manifest:
    """Take a task's adapter out of a bundle, with the evidence it came with; what bundle.json says now.

    Raises:
        TaskError: the bundle has no such task.
        BundleError: the bundle is damaged, or the disk refuses. Nothing was changed then.
        UsageError: the bundle is a link.
    """
    directory = _no_link(Path(bundle))
    with swap.alone(directory):
        manifest = verify(directory)
        names = [entry.name for entry in manifest.adapters or ()]
        if task not in names:
            raise TaskError(
                f'there is no task "{task}"; the tasks of this bundle: {", ".join(names) or "none"}'
            )
        kept = _without(manifest, task)
        return _write(directory, kept, set(kept.files), lambda fresh: None)


def recover(bundle: Path | str) -> Manifest:
    """Put right what a killed install left, and verify the bundle.

    It is needed only where two directories cannot be exchanged in one step; every install does it first.

    Raises:
        BundleError: there is no bundle, or it is damaged.
        UsageError: the bundle is a link.
    """
    directory = _no_link(Path(bundle))
    with swap.alone(directory):
        return verify(directory)


def _no_link(directory: Path) -> Path:
    if directory.is_symlink():
        raise UsageError(f"{directory} is a link, whose target others may use; give {directory.resolve()}")
    return directory.resolve()  # a name and a parent, for "." too


def _entry(directory: Path, manifest: Manifest, source: Path, delta: Delta, unproven: bool) -> AdapterEntry:
    """What the manifest will say of a delta's adapter, which fits and may be installed."""
    if manifest.adapters is None:
        raise BundleError(
            f"{directory} takes no adapters: its adapter is merged; package it with a switchable graph"
        )
    if problems := foreign_parts(delta.target, target(manifest)):
        raise BundleError(
            f'{source} was made for another bundle than this ("{delta.target.bundle}"); '
            "package the adapter for this one:",
            problems,
        )
    files = manifest.files
    adapter = load_adapter(
        source / delta.file,
        read_sites(directory),
        files["tokenizer.json"].sha256,
        files["chat_template.jinja"].sha256,
    )
    entry = AdapterEntry(
        name=delta.task,
        file=f"{ADAPTERS}/{delta.file}",
        sha256=adapter.digest,
        rank=adapter.rank,
        belongs_to=adapter.belongs_to,
        proof="none" if delta.gate is None else "own",
        gate=delta.gate,
        lineage=delta.lineage,
    )
    if entry in manifest.adapters:
        return entry
    if not delta.replaces and any(known.name == delta.task for known in manifest.adapters):
        raise BundleError(
            f'the bundle has a task "{delta.task}" already, and {source} does not say that it replaces it; '
            "remove the task first, or package the adapter with --replaces"
        )
    if delta.gate is None and not unproven:
        raise BundleError(
            f"{source} has no evidence of its own; package it with --report, or install it as --unproven"
        )
    return entry


def _without(manifest: Manifest, task: str) -> Manifest:
    """The manifest without a task, its files and its evidence."""
    gone = {path for entry in manifest.adapters or () if entry.name == task for path in adapter_files(entry)}
    files = {
        path: file
        for path, file in manifest.files.items()
        if path not in gone and not path.startswith(_evidence(task))
    }
    adapters = tuple(entry for entry in manifest.adapters or () if entry.name != task)
    return replace(manifest, files=files, adapters=adapters)


def _place(delta: Delta, name: str) -> str:
    """Where a file of a delta lies in the bundle."""
    if name in (delta.file, record_name(delta.file)):
        return f"{ADAPTERS}/{name}"
    return f"{_evidence(delta.task)}{name.removeprefix(REPORTS)}"


def _evidence(task: str) -> str:
    return f"{REPORTS}{ADAPTERS}/{task}/"


def _write(
    directory: Path, manifest: Manifest, unchanged: set[str], fill: Callable[[Path], None]
) -> Manifest:
    """Assemble the new bundle beside the old, verify it, and exchange the two."""
    text = manifest_text(manifest)
    parse(text)
    try:
        with swap.replacing(directory) as fresh:
            for name in unchanged:
                _link(directory / name, fresh / name)
            fill(fresh)
            (fresh / MANIFEST).write_text(text, encoding="utf-8")
            return verify(fresh)
    except OSError as error:
        raise BundleError(f"cannot change {directory}: {error}; it is as it was") from error


def _link(source: Path, place: Path) -> None:
    """A second name for a file, or a copy where the file system has no second names."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)
