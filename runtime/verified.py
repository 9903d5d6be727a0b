"""A bundle that was verified before and has not been touched since, known without reading it again."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import asdict
from pathlib import Path

from runtime.errors import BundleError
from runtime.files import present, read_list
from runtime.kept import SETTLED_NS, Identity, identity, keep, read_kept
from runtime.manifest import MANIFEST, Manifest, parse, verify

_LOG = logging.getLogger(__name__)


def verify_once(directory: Path, cache: Path) -> Manifest:
    """`verify`, without hashing where every file is the very one that was hashed before (`runtime.kept`).

    What is there, and what bundle.json says, is looked at each time.

    Args:
        directory: the bundle.
        cache: as `runtime.kept.own_directory` gives it.

    Raises:
        BundleError: as `verify`.
    """
    place = cache / f"verified-{hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:32]}.json"
    before = _identities(directory)
    kept = read_kept(place)
    if before is not None and kept == _record(before):
        try:
            return parse(read_list(directory / MANIFEST))
        except FileNotFoundError:
            pass  # removed a moment ago: `verify` says so
    looked = time.time_ns()
    manifest = verify(directory)
    if (
        before is not None
        and before == _identities(directory)
        and all(each.changed < looked - SETTLED_NS for each in before.values())
    ):
        try:
            keep(place, _record(before))
        except OSError as error:
            _LOG.warning("that %s was verified cannot be kept in %s: %s", directory, cache, error)
    return manifest


def _identities(directory: Path) -> dict[str, Identity] | None:
    """Of every file, bundle.json too; None where something is not a plain file or cannot be read."""
    try:
        sizes, found = present(directory, MANIFEST)
        return None if found else {name: identity(directory / name) for name in sorted([*sizes, MANIFEST])}
    except (OSError, BundleError):
        return None


def _record(identities: dict[str, Identity]) -> object:
    return {name: asdict(each) for name, each in identities.items()}
