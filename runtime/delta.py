"""delta.json: one adapter for a bundle that is installed already, read strictly. Standard library only.

A delta is a directory. What it is for is said by everything of the bundle that an adapter depends on, and by
nothing that another delta changes, so that deltas may be installed in any order. docs/bundle-format.md is the
specification.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import BundleError
from runtime.files import File, differences, list_problems, read_list
from runtime.manifest import NAME, AdapterEntry, GateSummary, Limits, Lineage, Manifest, Prompt
from runtime.no_bundle import DELTA
from runtime.sites import ADAPTER_SUFFIX, record_name
from runtime.strict import parse_json, read_record

FORMAT_VERSION = 1
REPORTS = "reports/"
"""Begins the paths of evidence, in a bundle as in a delta."""


@dataclass(frozen=True)
class Target:
    """What must be the same in a bundle for the adapter to work and its evidence to hold.

    Attributes:
        bundle: the name of the bundle that it was made for, for people; it is not compared.
        files: path → sha256 of every file of the bundle that is neither an adapter's nor evidence.
        prompt: as in bundle.json.
        limits: as in bundle.json.
    """

    bundle: str
    files: dict[str, str]
    prompt: Prompt
    limits: Limits


@dataclass(frozen=True)
class Delta:
    """delta.json.

    Attributes:
        task: the adapter's name.
        replaces: whether it takes the place of an adapter of that name, if there is one.
        target: what it is for.
        files: path → what it must be; the adapter, its record and reports.
        gate: what the adapter was admitted on, in a bundle of that target; None: it has no evidence.
        lineage: what it was made from.
    """

    format_version: int
    task: str
    replaces: bool
    target: Target
    files: dict[str, File]
    gate: GateSummary | None
    lineage: Lineage

    @property
    def file(self) -> str:
        """Path of the .onnx_adapter."""
        return f"{self.task}{ADAPTER_SUFFIX}"


def verify_delta(directory: Path) -> Delta:
    """Read delta.json and check every file of the delta against it.

    Raises:
        BundleError: delta.json is missing, malformed or of another format version; or files are missing,
            added, changed, or not plain files. All differences are in `problems`.
    """
    try:
        text = read_list(directory / DELTA)
    except FileNotFoundError:
        raise BundleError(
            f"{directory} is no update of a bundle: it has no {DELTA}; "
            "`cockpit package --adapter-for` makes one"
        ) from None
    delta = parse_delta(text)
    try:
        found = differences(directory, delta.files, DELTA)
    except OSError as error:
        raise BundleError(f"cannot read {directory}: {error}") from error
    if found:
        raise BundleError(f"{directory} is not the update that was packaged; fetch it again:", found)
    return delta


def parse_delta(text: str) -> Delta:
    """Read the text of a delta.json.

    Raises:
        BundleError: it is not JSON, of another format version, or fields are missing, unknown or wrong.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        raise BundleError(f"{DELTA} is not valid JSON: {error}; fetch the update again") from error
    version = value.get("format_version") if isinstance(value, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(
            f"{DELTA} has format version {version!r:.40}; this runtime reads {FORMAT_VERSION} only"
        )
    delta, found = read_record(Delta, value)
    if delta is not None:
        found = list(_constraints(delta))
    if delta is None or found:
        raise BundleError(f"{DELTA} is malformed; package the update again:", found)
    return delta


def delta_text(delta: Delta) -> str:
    """What delta.json holds."""
    return json.dumps(dataclasses.asdict(delta), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def target(manifest: Manifest) -> Target:
    """What a delta for this bundle must name."""
    apart = {path for entry in manifest.adapters or () for path in adapter_files(entry)}
    files = {
        path: file.sha256
        for path, file in sorted(manifest.files.items())
        if path not in apart and not path.startswith(REPORTS)
    }
    return Target(manifest.name, files, manifest.prompt, manifest.limits)


def adapter_files(entry: AdapterEntry) -> tuple[str, str]:
    """An adapter's file and its record, as paths in the bundle."""
    return entry.file, record_name(entry.file)


def foreign_parts(wanted: Target, found: Target) -> list[str]:
    """Which parts of a bundle are not those that a delta was made for."""
    names = sorted(set(wanted.files) | set(found.files))
    problems = []
    for name in names:
        if name not in found.files:
            problems.append(f"the bundle has no {name}")
        elif name not in wanted.files:
            problems.append(f"the bundle has {name} as well")
        elif wanted.files[name] != found.files[name]:
            problems.append(f"{name} is another")
    for part in ("prompt", "limits"):
        wants, has = (dataclasses.asdict(getattr(one, part)) for one in (wanted, found))
        problems += [f"{part}.{field} is another" for field in wants if wants[field] != has[field]]
    return problems


def _constraints(delta: Delta) -> Iterator[str]:
    """What the types of the fields cannot say."""
    if not NAME.fullmatch(delta.task):
        yield f"task must be of letters, digits, . _ and -, not {delta.task!r:.60}"
    yield from list_problems(delta.files, DELTA)
    needed = (delta.file, record_name(delta.file))
    yield from (f"files lists no {name:.80}" for name in needed if name not in delta.files)
    for name in delta.files:
        if name not in needed and not name.startswith(REPORTS):
            yield f"files: {name:.80} is neither the adapter nor below {REPORTS}"
    if delta.gate is not None and not delta.gate.checks:
        yield "gate has no checks; a delta without evidence has none at all"
