"""An adapter for a bundle that is installed already, as a directory of its own."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.adapter import Factors, write_adapter
from runtime.adapters import load_adapter
from runtime.delta import FORMAT_VERSION, REPORTS, Delta, delta_text, parse_delta, target
from runtime.errors import ExportError, UsageError
from runtime.files import File
from runtime.manifest import GateSummary, Lineage, Manifest, verify
from runtime.no_bundle import DELTA
from runtime.sites import ADAPTER_SUFFIX, Belonging, FactorType, read_sites, record_name


@dataclass(frozen=True)
class Evidence:
    """What an adapter was admitted on.

    Attributes:
        gate: that it passed.
        reports: file name below reports/ → file.
    """

    gate: GateSummary
    reports: Mapping[str, Path]


@dataclass(frozen=True)
class DeltaDescription:
    """What a delta says of itself beyond its files.

    Attributes:
        task: the adapter's name.
        replaces: whether it takes the place of an adapter of that name.
        dtype: how the factors are stored.
        lineage: what the adapter was made from.
    """

    task: str
    replaces: bool
    dtype: FactorType
    lineage: Lineage


def switchable(bundle: Path, task: str, replaces: bool) -> Manifest:
    """The manifest of a bundle that can take an adapter for a task.

    Raises:
        BundleError: the bundle is damaged.
        UsageError: it takes no adapters, or has the task and the adapter does not replace it.
    """
    manifest = verify(bundle)
    if manifest.adapters is None:
        raise UsageError(f"{bundle} takes no adapters: its adapter is merged; package a switchable graph")
    if not replaces and any(entry.name == task for entry in manifest.adapters):
        raise UsageError(
            f'{bundle} has a task "{task}" already; --replaces makes an update that takes its place'
        )
    return manifest


def write_delta(
    bundle: Path,
    updates: Sequence[Factors],
    belongs: Belonging,
    description: DeltaDescription,
    evidence: Evidence | None,
    out: Path,
) -> Delta:
    """Write an adapter, its record, its evidence and delta.json.

    Args:
        bundle: the bundle that it is for.
        updates: of weights that its graph can adapt.
        belongs: what the updates were trained with.
        description: task, type and lineage.
        evidence: none, where the adapter was not measured in this bundle.
        out: an existing, empty directory.

    Raises:
        BundleError: the bundle is damaged, or the adapter belongs to another.
        UsageError: the bundle takes no adapters, or has the task and the adapter does not replace it.
        ExportError: the updates do not fit the graph, or the disk refuses.
    """
    task = description.task
    manifest = switchable(bundle, task, description.replaces)
    sites = read_sites(bundle)
    write_adapter(task, updates, sites, belongs, description.dtype, out)
    adapter = out / f"{task}{ADAPTER_SUFFIX}"
    own = (manifest.files[name].sha256 for name in ("tokenizer.json", "chat_template.jinja"))
    load_adapter(adapter, sites, *own)
    reports = {f"{REPORTS}{name}": path for name, path in (evidence.reports if evidence else {}).items()}
    try:
        for name, path in reports.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / name)
        names = (adapter.name, record_name(adapter.name), *reports)
        files = {name: _file(out / name) for name in names}
        delta = Delta(
            FORMAT_VERSION,
            task,
            description.replaces,
            target(manifest),
            files,
            evidence.gate if evidence else None,
            description.lineage,
        )
        text = delta_text(delta)
        parse_delta(text)
        (out / DELTA).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ExportError(f"cannot write the update to {out}: {error}") from error
    return delta


def _file(path: Path) -> File:
    raw = path.read_bytes()
    return File(hashlib.sha256(raw).hexdigest(), len(raw))
