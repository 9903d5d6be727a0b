"""A PEFT adapter and the bundle that it is for → an update of that bundle, as a stage."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.bundle import summary
from export.delta import DeltaDescription, Evidence, switchable, write_delta
from export.tokenizer import copy_tokenizer
from export.weights import Checkpoint
from pipeline.adapter import read_adapter
from pipeline.factors import belonging, factors
from pipeline.fingerprint import fingerprint
from pipeline.provenance import versions
from pipeline.stage import Artifact, Progress, Stage, artifact
from pipeline.stages import Plan
from pipeline.training.record import read_training, trained_prompt
from runtime.errors import AdapterError, UsageError
from runtime.manifest import Lineage, Manifest
from runtime.report import Report, read_report
from runtime.sites import FactorType
from runtime.update import install

_LIBRARIES = ("cockpit-edge", "numpy", "onnxruntime")


@dataclass(frozen=True)
class Made:
    """What a delta is made of.

    Attributes:
        bundle: the bundle that it is for.
        adapter: a PEFT adapter folder.
        base: the checkpoint that it was trained on.
        report: the `report` folder that `cockpit validate` made of a copy of the bundle with this adapter.
    """

    bundle: Artifact
    adapter: Artifact
    base: Artifact
    report: Artifact | None


def delta(made: Made, task: str, replaces: bool, dtype: FactorType) -> Plan:
    """The update as a plan.

    Args:
        made: what it is made of.
        task: the adapter's name.
        replaces: whether it takes the place of an adapter of that name.
        dtype: how the factors are stored.
    """

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        manifest = switchable(made.bundle.path, task, replaces)
        _refuse_another_prompt(made.adapter.path, manifest)
        understood = read_adapter(made.adapter.path)
        progress("reading the base's weights", 0, 0)
        tokenizer = _empty(scratch / "tokenizer")
        copy_tokenizer(made.base.path, tokenizer, manifest.limits.vocabulary)
        updates = factors(understood, Checkpoint(made.base.path))
        belongs = belonging(understood, made.base.path, tokenizer)
        described = DeltaDescription(task, replaces, dtype, _lineage(made))
        evidence = None
        if made.report is not None:
            report = read_report(made.report.path / "report.json")
            gate = summary(report.gate)
            progress("holding the report against the bundle", 0, 0)
            unproven = _empty(scratch / "unproven")
            write_delta(made.bundle.path, updates, belongs, described, None, unproven)
            _refuse_another_report(report, made, unproven, scratch / "trial")
            evidence = Evidence(gate, {path.name: path for path in sorted(made.report.path.iterdir())})
        written = write_delta(made.bundle.path, updates, belongs, described, evidence, out)
        return {"bytes": sum(file.size for file in written.files.values()), "proven": evidence is not None}

    inputs = {"bundle": made.bundle, "adapter": made.adapter, "base": made.base}
    inputs |= {} if made.report is None else {"report": made.report}
    config = {"task": task, "replaces": replaces, "dtype": dtype}
    return Plan(Stage("delta", "pipeline.delta", _LIBRARIES, config, inputs), work)


def _lineage(made: Made) -> Lineage:
    base = (read_adapter(made.adapter.path).base or fingerprint(made.base.path)).digest
    recipe = read_training(made.adapter.path) or {}
    return Lineage(
        base, made.adapter.digest, made.adapter.lineage.get("data"), recipe, dict(versions(_LIBRARIES))
    )


def _refuse_another_prompt(adapter: Path, manifest: Manifest) -> None:
    trained = trained_prompt(adapter)
    if trained is not None and trained != manifest.prompt.system:
        raise AdapterError(
            f"{adapter} was trained with another system prompt than the bundle has: {trained!r:.120}; "
            "train it with the bundle's"
        )


def _refuse_another_report(report: Report, made: Made, unproven: Path, trial: Path) -> None:
    """Refuse evidence that is of anything but this bundle with this adapter."""
    for name, wanted in (("adapter", made.adapter), ("base", made.base)):
        if report.lineage.get(name) != wanted.digest:
            raise UsageError(f"the report is of another {name} than {wanted.path}; measure this one")
    shutil.rmtree(trial, ignore_errors=True)
    shutil.copytree(made.bundle.path, trial)
    install(trial, unproven, unproven=True)
    if report.lineage.get("bundle") != artifact(trial).digest:
        raise UsageError(
            f"the report is of another bundle than {made.bundle.path} with this adapter: package it without "
            "--report, install it into a copy as --unproven, validate the copy, and give that report"
        )


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
