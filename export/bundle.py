"""Exported files and what is known of them → a candidate bundle; a candidate and its evidence → a bundle.

Weights are linked, not copied, where the file system can; no input is changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx

from runtime import calls
from runtime.adapters import load_adapter
from runtime.calls import AnswerForm, call_grammar, load_tools
from runtime.errors import ExportError, GateError, TaskError, UsageError
from runtime.manifest import (
    FORMAT_VERSION,
    AdapterEntry,
    Exporter,
    GateCheck,
    GateSummary,
    Limits,
    Lineage,
    Manifest,
    Precision,
    Prompt,
    Requirements,
    verify,
    write_manifest,
)
from runtime.report import GateReport
from runtime.sites import ADAPTERS, SITES, read_sites, record_name

NEEDED = ("model.onnx", "genai_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
OPTIONAL = ("model.onnx.data", "model.onnx_data", "head.onnx", "special_tokens_map.json", SITES)
MINIMUM_ONNXRUNTIME = "1.28.1"
"""The first with all operators the graph uses and without known holes in reading external data."""
MINIMUM_WITH_INT8_CACHE = "1.32.0"
"""The first on which caches in int8 were tried."""
STANDARD_DOMAIN = "ai.onnx"


@dataclasses.dataclass(frozen=True)
class Description:
    """What a bundle says of itself beyond its files."""

    name: str
    precision: Precision
    exporter: Exporter
    lineage: Lineage
    system: str
    form: AnswerForm


def answer_form(exported: Path) -> AnswerForm:
    """The form of answer that an exported checkpoint's chat template defines.

    Raises:
        ExportError: there is no chat template.
        DataError: the template writes calls in a form that is not known.
    """
    try:
        template = (exported / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{exported} has no readable chat_template.jinja: {error}") from error
    return calls.answer_form(template)


def package(
    exported: Path, out: Path, tools: Path, description: Description, adapters: Sequence[Path] = ()
) -> Manifest:
    """Make a candidate bundle of an exported checkpoint.

    Args:
        exported: directory with the graph, tokenizer files and genai_config.json.
        out: the bundle's directory; absent or empty.
        tools: the functions it may call.
        description: name, lineage and prompt.
        adapters: NAME.onnx_adapter files with their records, for a switchable graph; they are listed by name.

    Raises:
        UsageError: `out` holds something, or two adapters are of one name.
        BundleError: an adapter does not belong to the exported checkpoint.
        DataError: the tools file is malformed.
        ExportError: a file is missing from `exported`, or its genai_config.json cannot be understood.
    """
    call_grammar(load_tools(tools), description.form)
    if absent := [name for name in NEEDED if not (exported / name).is_file()]:
        raise ExportError(f"{exported} has no {', '.join(absent)}; export the checkpoint again")
    limits, stop_tokens = _read_genai_config(exported / "genai_config.json")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=description.name,
        precision=description.precision,
        exporter=description.exporter,
        lineage=description.lineage,
        limits=limits,
        requirements=Requirements(_lowest_onnxruntime(exported), _operators(exported)),
        prompt=Prompt(description.system, description.form, stop_tokens),
        gate=None,
        files={},
        adapters=_entries(exported, adapters),
    )
    with _new_directory(out) as partial:
        for name in (*NEEDED, *OPTIONAL):
            if (exported / name).is_file():
                _link(exported / name, partial / name)
        for file in adapters:
            for name in (file.name, record_name(file.name)):
                _link(file.with_name(name), partial / ADAPTERS / name)
        shutil.copyfile(tools, partial / "tools.json")
        return write_manifest(partial, manifest)


def admit(candidate: Path, out: Path, gate: GateReport, reports: Mapping[str, Path]) -> Manifest:
    """Make the final bundle of a candidate that passed its gate.

    Args:
        candidate: the candidate bundle, verified again here: what is admitted is what was measured.
        out: the bundle's directory; absent or empty.
        gate: the verdict; only a pass is admitted.
        reports: file name below reports/ → file.

    Raises:
        GateError: the gate did not pass.
        BundleError: the candidate was altered.
        UsageError: `out` holds something.
    """
    passed = summary(gate)
    manifest = verify(candidate)
    with _new_directory(out) as partial:
        for name in manifest.files:
            _link(candidate / name, partial / name)
        for name, report in reports.items():
            (partial / "reports").mkdir(exist_ok=True)
            shutil.copyfile(report, partial / "reports" / name)
        return write_manifest(partial, dataclasses.replace(manifest, gate=passed))


def _entries(exported: Path, files: Sequence[Path]) -> tuple[AdapterEntry, ...] | None:
    """What the manifest says of adapters; None for a graph that takes none."""
    if not (exported / SITES).is_file():
        if files:
            raise ExportError(f"{exported} takes no adapters: it has no {SITES}; export it as switchable")
        return None
    sites = read_sites(exported)
    tokenizer, template = (
        hashlib.sha256((exported / name).read_bytes()).hexdigest()
        for name in ("tokenizer.json", "chat_template.jinja")
    )
    entries = []
    for file in files:
        adapter = load_adapter(file, sites, tokenizer, template)
        path = f"{ADAPTERS}/{file.name}"
        entries.append(
            AdapterEntry(
                adapter.name,
                path,
                adapter.digest,
                adapter.rank,
                adapter.belongs_to,
                proof="bundle",
                gate=None,
                lineage=None,
            )
        )
    names = [entry.name for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TaskError(f"two adapters are for {', '.join(twice)}; a task has one")
    return tuple(sorted(entries, key=lambda entry: entry.name))


def summary(gate: GateReport) -> GateSummary:
    """What a manifest says of a gate that passed.

    Raises:
        GateError: it did not pass, or a check has no value.
    """
    failed = [check.name for check in gate.checks if check.verdict != "pass"]
    if gate.verdict != "pass" or failed or not gate.checks:
        raise GateError(f"the gate did not pass ({', '.join(failed) or gate.verdict}), so there is no bundle")
    checks = []
    for check in gate.checks:
        if check.value is None:
            raise GateError(f"{check.name} passed without a value; measure it again")
        checks.append(GateCheck(check.name, check.value, check.threshold, check.direction))
    return GateSummary("pass", tuple(checks))


def _read_genai_config(path: Path) -> tuple[Limits, tuple[int, ...]]:
    """Context, vocabulary and the tokens that end an answer."""
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
        stop = model["eos_token_id"]
        stop_tokens = tuple(int(token) for token in (stop if isinstance(stop, list) else [stop]))
        return Limits(int(model["context_length"]), int(model["vocab_size"])), stop_tokens
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} does not say context, vocabulary and end of text: {error!r}") from error


def _lowest_onnxruntime(exported: Path) -> str:
    graph = onnx.load(exported / "model.onnx", load_external_data=False).graph
    kinds = {value.type.tensor_type.elem_type for value in graph.input}
    return MINIMUM_WITH_INT8_CACHE if onnx.TensorProto.INT8 in kinds else MINIMUM_ONNXRUNTIME


def _operators(exported: Path) -> tuple[str, ...]:
    """`domain.Name` of every kind of node in the graphs, functions' bodies included."""
    kinds: set[str] = set()
    for name in ("model.onnx", "head.onnx"):
        if (exported / name).is_file():
            model = onnx.load(exported / name, load_external_data=False)
            for nodes in (model.graph.node, *(function.node for function in model.functions)):
                kinds |= {f"{node.domain or STANDARD_DOMAIN}.{node.op_type}" for node in nodes}
    return tuple(sorted(kinds))


@contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    """A directory under a hidden name that takes the name `out` when it is complete."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UsageError(f"{out} already exists; remove it or choose another name")
    partial = out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where a second name is not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
