"""bundle.json: what a bundle is, read strictly and checked against every file. Standard library only.

A bundle is a directory. `verify` is the one way in: it reads the manifest, hashes every file, and names
every difference at once. Nothing else in the bundle is opened before that. docs/bundle-format.md is the
specification.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.calls import AnswerForm
from runtime.errors import BundleError
from runtime.sites import ADAPTER_SUFFIX, SITES, record_name
from runtime.strict import parse_json, read_record

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
BUILD_RECORD = "stage.json"
"""What a build leaves beside bundle.json about itself; no part of the bundle, and no reader opens it."""
MOST_MANIFEST_BYTES = 4 << 20
"""A larger bundle.json is refused before it is read."""
NEEDED_FILES = ("model.onnx", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tools.json")

Precision = Literal["fp32", "fp16", "int8", "int4"]
Exporter = Literal["graph", "optimum"]
Direction = Literal["at most", "at least"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class File:
    """What a file's content must be. `size` in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Lineage:
    """What the bundle was made from.

    Attributes:
        base: fingerprint of the base model's weights.
        adapter: digest of the adapter merged into it, or None.
        dataset: digest of the data the adapter was trained on, or None.
        recipe: the config the bundle was built with.
        versions: library → version that shaped the content.
    """

    base: str
    adapter: str | None
    dataset: str | None
    recipe: dict[str, object]
    versions: dict[str, str]


@dataclass(frozen=True)
class Limits:
    """`context`: most tokens of prompt and answer together; `vocabulary`: number of logits."""

    context: int
    vocabulary: int


@dataclass(frozen=True)
class Requirements:
    """`onnxruntime`: lowest version that runs the graph; `operators`: `domain.Name` of every kind in it."""

    onnxruntime: str
    operators: tuple[str, ...]


@dataclass(frozen=True)
class Prompt:
    """How the model is asked: its system prompt, the form of its answers, the tokens that end one."""

    system: str
    form: AnswerForm
    stop_tokens: tuple[int, ...]


@dataclass(frozen=True)
class GateCheck:
    """One threshold the bundle met."""

    name: str
    value: float
    threshold: float
    direction: Direction


@dataclass(frozen=True)
class GateSummary:
    """What the bundle was admitted on. Only a passed gate is ever written."""

    verdict: Literal["pass"]
    checks: tuple[GateCheck, ...]


@dataclass(frozen=True)
class AdapterEntry:
    """An adapter that the bundle's model can switch to.

    Attributes:
        name: the task it is for.
        file: path of its .onnx_adapter; its record lies beside it, as .json.
        sha256: of the file.
        rank: largest of one weight's update.
        belongs_to: digest of what it must be used with (`runtime.sites.Belonging`).
    """

    name: str
    file: str
    sha256: str
    rank: int
    belongs_to: str


@dataclass(frozen=True)
class Manifest:
    """bundle.json.

    `gate` is None in a candidate; `files` has every file but bundle.json itself; `adapters` is None, and
    not in the file, where the graph takes none.
    """

    format_version: int
    name: str
    precision: Precision
    exporter: Exporter
    lineage: Lineage
    limits: Limits
    requirements: Requirements
    prompt: Prompt
    gate: GateSummary | None
    files: dict[str, File]
    adapters: tuple[AdapterEntry, ...] | None = None


def verify(directory: Path) -> Manifest:
    """Read bundle.json and check every file of the bundle against it.

    Raises:
        BundleError: bundle.json is missing, malformed or of another format version; or files are
            missing, added, changed, or not plain files. All differences are in `problems`.
    """
    manifest = parse(_read(directory))
    present, found = _present_files(directory)
    found += [f"{name} is missing" for name in sorted(set(manifest.files) - set(present))]
    found += [f"{name} is not listed in {MANIFEST}" for name in sorted(set(present) - set(manifest.files))]
    # The largest first, so that two threads end together; hashing and reading release the interpreter.
    names = sorted(set(present) & set(manifest.files), key=lambda name: -present[name])
    with ThreadPoolExecutor(max_workers=2) as pool:
        checks = pool.map(
            lambda name: _difference(directory, name, present[name], manifest.files[name]), names
        )
        found += sorted(check for check in checks if check is not None)
    if found:
        raise BundleError(f"{directory} is not the bundle that was packaged; install it again:", found)
    return manifest


def parse(text: str) -> Manifest:
    """Read the text of a bundle.json.

    Raises:
        BundleError: it is not JSON, of another format version, or fields are missing, unknown or wrong.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        raise BundleError(f"{MANIFEST} is not valid JSON: {error}; install the bundle again") from error
    version = value.get("format_version") if isinstance(value, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(
            f"{MANIFEST} has format version {version!r:.40}; this runtime reads {FORMAT_VERSION} only"
        )
    # A bundle without the key is not a switchable one. Readers that do not know the key refuse it, as they
    # must: they would run the bare base.
    if value.get("adapters", ()) is None:
        raise BundleError(f"{MANIFEST} is malformed; package the bundle again:", ["adapters must be a list"])
    manifest, found = read_record(Manifest, {"adapters": None} | value)
    if manifest is not None:
        found = list(_constraints(manifest))
    if manifest is None or found:
        raise BundleError(f"{MANIFEST} is malformed; package the bundle again:", found)
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Hash every file of a directory into `manifest.files` and write bundle.json; returns what was written.

    Raises:
        BundleError: the directory holds something that a bundle may not, or lacks a file it needs.
    """
    present, found = _present_files(directory)
    if found:
        raise BundleError(f"{directory} cannot become a bundle:", found)
    files = {name: File(_digest(directory / name), size) for name, size in sorted(present.items())}
    written = dataclasses.replace(manifest, files=files)
    text = manifest_text(written)
    parse(text)
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    return written


def manifest_text(manifest: Manifest) -> str:
    """What bundle.json holds."""
    value = dataclasses.asdict(manifest)
    if manifest.adapters is None:
        del value["adapters"]
    return json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _read(directory: Path) -> str:
    path = directory / MANIFEST
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} is not a plain file; install the bundle again")
        if status.st_size > MOST_MANIFEST_BYTES:
            raise BundleError(f"{path} is larger than {MOST_MANIFEST_BYTES} bytes; it is not a manifest")
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{directory} is not a bundle: it has no {MANIFEST}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot read {path}: {error}") from error


def _present_files(directory: Path) -> tuple[dict[str, int], list[str]]:
    """Every plain file below a directory but those two, with its size; and what else is there."""
    sizes: dict[str, int] = {}
    found: list[str] = []
    for path in _walk(directory):
        name = path.relative_to(directory).as_posix()
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            found.append(f"{name} is a link; a bundle holds plain files only")
        elif not stat.S_ISREG(status.st_mode):
            found.append(f"{name} is not a plain file")
        elif name not in (MANIFEST, BUILD_RECORD):
            sizes[name] = status.st_size
    return sizes, sorted(found)


def _walk(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path


def _difference(directory: Path, name: str, size: int, expected: File) -> str | None:
    if size != expected.size:
        return f"{name} has {size} bytes instead of {expected.size}"
    try:
        return None if _digest(directory / name) == expected.sha256 else f"{name} was changed"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _constraints(manifest: Manifest) -> Iterator[str]:
    """What the types of the fields cannot say."""
    limits, prompt = manifest.limits, manifest.prompt
    if not _NAME.fullmatch(manifest.name):
        yield f"name must be of letters, digits, . _ and -, not {manifest.name!r:.60}"
    if not _VERSION.fullmatch(manifest.requirements.onnxruntime):
        yield f"requirements.onnxruntime must be a version, not {manifest.requirements.onnxruntime!r:.60}"
    if limits.context < 2 or limits.vocabulary < 1:
        yield f"limits must be positive, not context {limits.context}, vocabulary {limits.vocabulary}"
    if not prompt.stop_tokens:
        yield "prompt.stop_tokens must name at least one token"
    for token in prompt.stop_tokens:
        if not 0 <= token < limits.vocabulary:
            yield f"prompt.stop_tokens: {token} is not in the vocabulary of {limits.vocabulary}"
    for name in NEEDED_FILES:
        if name not in manifest.files:
            yield f"files lists no {name}"
    for name, file in manifest.files.items():
        if not _inside(name):
            yield f"files: {name!r:.80} is not a plain path inside the bundle"
        if not _DIGEST.fullmatch(file.sha256) or file.size < 0:
            yield f"files: {name:.80} needs a sha256 of 64 hex digits and a size"
    if manifest.adapters is not None:
        yield from _adapter_constraints(manifest, manifest.adapters)


def _adapter_constraints(manifest: Manifest, adapters: tuple[AdapterEntry, ...]) -> Iterator[str]:
    if manifest.exporter != "graph":
        yield f"adapters: the exporter {manifest.exporter} writes no graph that takes any"
    if SITES not in manifest.files:
        yield f"files lists no {SITES}, which a bundle with adapters needs"
    names = [entry.name for entry in adapters]
    yield from (
        f"adapters: {name:.60} is there twice" for name in sorted({n for n in names if names.count(n) > 1})
    )
    for entry in adapters:
        if not _NAME.fullmatch(entry.name):
            yield f"adapters: a name must be of letters, digits, . _ and -, not {entry.name!r:.60}"
        listed = manifest.files.get(entry.file)
        if listed is None or not entry.file.endswith(ADAPTER_SUFFIX):
            yield f"adapters: {entry.name:.60} needs a {ADAPTER_SUFFIX} file that is listed in files"
        elif listed.sha256 != entry.sha256:
            yield f"adapters: {entry.name:.60} and files give two digests of {entry.file:.80}"
        if record_name(entry.file) not in manifest.files:
            yield f"files lists no {record_name(entry.file):.80}"
        if entry.rank < 1 or not _DIGEST.fullmatch(entry.belongs_to):
            yield f"adapters: {entry.name:.60} needs a rank and the digest of what it belongs to"


def _inside(name: str) -> bool:
    """Whether a file name is relative, normal, portable, and not the manifest's own."""
    parts = name.split("/")
    odd = any(part in ("", ".", "..") for part in parts) or any(c in "\\:" or c < " " for c in name)
    return not odd and name not in (MANIFEST, BUILD_RECORD)
