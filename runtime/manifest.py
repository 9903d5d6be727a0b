"""bundle.json: what a bundle is, read strictly and checked against every file. Standard library only.

A bundle is a directory. `verify` is the one way in: it reads the manifest, hashes every file, and names
every difference at once. Nothing else in the bundle is opened before that. docs/bundle-format.md is the
specification.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtime.calls import AnswerForm
from runtime.errors import BundleError
from runtime.files import File, differences, digest, is_digest, list_problems, present, read_list
from runtime.no_bundle import no_bundle
from runtime.sites import ADAPTER_SUFFIX, SITES, record_name
from runtime.strict import parse_json, read_record

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
NEEDED_FILES = ("model.onnx", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tools.json")

Precision = Literal["fp32", "fp16", "int8", "int4"]
Exporter = Literal["graph", "optimum"]
Direction = Literal["at most", "at least"]
Proof = Literal["bundle", "own", "none"]
"""bundle: the adapter was there when the bundle's `gate` was judged; own: it has a gate of its own; none: it
was installed without evidence."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*")


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
    """What a bundle or an adapter was admitted on. Only a passed gate is ever written."""

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
        proof: where the evidence for it is.
        gate: what it was admitted on, where the evidence is its own.
        lineage: what it was made from, where it was installed afterwards; else the bundle's says so.
    """

    name: str
    file: str
    sha256: str
    rank: int
    belongs_to: str
    proof: Proof
    gate: GateSummary | None
    lineage: Lineage | None


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
    try:
        text = read_list(directory / MANIFEST)
    except FileNotFoundError:
        raise BundleError(no_bundle(directory)) from None
    manifest = parse(text)
    try:
        found = differences(directory, manifest.files, MANIFEST)
    except OSError as error:
        raise BundleError(
            f"cannot read {directory}: {error}; open it again if it was being updated"
        ) from error
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
    sizes, found = present(directory, MANIFEST)
    if found:
        raise BundleError(f"{directory} cannot become a bundle:", found)
    files = {name: File(digest(directory / name), size) for name, size in sorted(sizes.items())}
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


def _constraints(manifest: Manifest) -> Iterator[str]:
    """What the types of the fields cannot say."""
    limits, prompt = manifest.limits, manifest.prompt
    if not NAME.fullmatch(manifest.name):
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
    yield from list_problems(manifest.files, MANIFEST)
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
        if not NAME.fullmatch(entry.name):
            yield f"adapters: a name must be of letters, digits, . _ and -, not {entry.name!r:.60}"
        listed = manifest.files.get(entry.file)
        if listed is None or not entry.file.endswith(ADAPTER_SUFFIX):
            yield f"adapters: {entry.name:.60} needs a {ADAPTER_SUFFIX} file that is listed in files"
        elif listed.sha256 != entry.sha256:
            yield f"adapters: {entry.name:.60} and files give two digests of {entry.file:.80}"
        if record_name(entry.file) not in manifest.files:
            yield f"files lists no {record_name(entry.file):.80}"
        if entry.rank < 1 or not is_digest(entry.belongs_to):
            yield f"adapters: {entry.name:.60} needs a rank and the digest of what it belongs to"
        own = entry.gate is not None
        if own != (entry.proof == "own") or (entry.gate is not None and not entry.gate.checks):
            yield f"adapters: {entry.name:.60} needs a gate with checks if its proof is own, and only then"
