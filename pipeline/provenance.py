"""Digests of what shapes a stage's output: files, code, libraries.

The code digest follows imports: a stage depends on its own module and on every module of ours that
it imports, directly or not, and on nothing else. So a change to the report's drawing leaves a trained
adapter standing, and a change to the loss mask does not.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

OURS = ("pipeline", "export", "runtime")


def json_digest(value: Any) -> str:
    """sha256 of a JSON value in one canonical form."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_files(directory: Path, exclude: Iterable[str] = ()) -> dict[str, dict[str, str | int]]:
    """Every file below a directory: its relative path → {"sha256", "size"}, in order of path."""
    left_out = set(exclude)
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return {
        name: {"sha256": file_digest(directory / name), "size": (directory / name).stat().st_size}
        for name in names
        if name not in left_out
    }


def directory_digest(directory: Path) -> str:
    """One digest over the paths and contents of every file below a directory, or of a single file."""
    if directory.is_file():
        return file_digest(directory)
    return json_digest(directory_files(directory))


def versions(distributions: Iterable[str]) -> Mapping[str, str]:
    """Installed versions of the named distributions; one that is absent is recorded as such."""
    return {name: _version(name) for name in sorted(distributions)}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def code_digest(module: str) -> str:
    """Digest of the sources of a module and of everything of ours that it imports, directly or not."""
    sources: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in sources or path is None:
            continue
        sources[name] = file_digest(path)
        waiting += _imports(path)
    return json_digest(sources)


def _source(module: str) -> Path | None:
    """The file of one of our modules, or None when `module` is an attribute or not ours.

    Found by path below the package: asking the import system about `a.b.c` would import `a.b`.
    """
    package, *rest = module.split(".")
    if package not in OURS:
        return None
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*rest)
    candidates = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((path for path in candidates if path.is_file()), None)


def _imports(path: Path) -> list[str]:
    """Every name that a file imports, `from a import b` as both `a` and `a.b`."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names
