"""Each stage as a plan: what shapes its output, and the work that makes it.

A build runs these plans one behind the other; a verb of the command line runs one of them alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, Export, Validate
from pipeline.evidence.latency import this_machine
from pipeline.provenance import versions
from pipeline.stage import RECORD, Artifact, Progress, Stage, artifact
from runtime.errors import UsageError
from runtime.manifest import Exporter, Precision
from runtime.report import GateReport

if TYPE_CHECKING:
    from pipeline.merging.plan import Onto

_TRAINING = ("torch", "transformers", "peft", "accelerate", "tokenizers")
_EXPORTING = ("numpy", "onnx-ir", "ml-dtypes")
_MEASURING = ("torch", "transformers", "peft", "onnxruntime", "tokenizers", "llguidance")

PlannedWork = Callable[[Path, Path, Progress], Mapping[str, Any]]
"""Output directory, scratch directory, progress → figures."""


@dataclass(frozen=True)
class Plan:
    """A stage ready to run."""

    stage: Stage
    work: PlannedWork


def base(config: Config) -> Plan:
    """Where the base comes from → a standard checkpoint."""

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        from pipeline.checkpoint import fetch_base

        return fetch_base(config.base, out, progress)

    settings = config.base.model_dump(mode="json", exclude={"path"})
    inputs = {} if config.base.path is None else {"checkpoint": artifact(config.base.path)}
    return Plan(Stage("base", "pipeline.checkpoint", ("transformers", "gguf"), settings, inputs), work)


def data(config: Config) -> Plan:
    """Generator or files → train, validation and test records."""

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        from pipeline.data.prepare import prepare

        progress("preparing conversations", 0, 0)
        return prepare(config, out)

    files = {"tools": config.data.tools}
    files |= {
        name: path
        for name in ("train", "validation", "test")
        if (path := getattr(config.data, name)) is not None
    }
    settings = {"seed": config.seed, **config.data.model_dump(mode="json", exclude={*files, "system"})}
    inputs = {name: artifact(path) for name, path in files.items()}
    return Plan(Stage("data", "pipeline.data.prepare", (), settings, inputs), work)


def adapter(config: Config, base: Artifact, data: Artifact) -> Plan:
    """Base and data → a PEFT adapter."""

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        from pipeline.train import train

        return train(config, base.path, data.path, out, scratch, progress)

    settings = {"seed": config.seed, "system": config.data.system, **config.train.model_dump(mode="json")}
    libraries = (*_TRAINING, "bitsandbytes") if config.train.method == "qlora" else _TRAINING
    return Plan(Stage("adapter", "pipeline.train", libraries, settings, {"base": base, "data": data}), work)


def merged(base: Artifact, adapter: Artifact, onto: Onto = "base") -> Plan:
    """Base and adapter → a standard checkpoint of W0 + s·BA."""
    return merged_together(base, [(adapter, 1.0)], onto, None)


def merged_qlora(base: Artifact, adapter: Artifact, data: Artifact, system: str, threads: int) -> Plan:
    """Base and a QLoRA adapter → a checkpoint on whichever base keeps it closer to the unmerged model."""

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        from pipeline.merging.qlora import merge_closer

        with TemporaryDirectory(dir=scratch) as name:
            return merge_closer(
                base.path, adapter.path, data.path, system, threads, out, Path(name), progress
            )

    inputs = {"base": base, "adapter": adapter, "data": data}
    libraries = ("numpy", "ml-dtypes", *_MEASURING[:3])
    return Plan(Stage("merged", "pipeline.merging.qlora", libraries, {"system": system}, inputs), work)


def merged_together(
    base: Artifact, adapters: Sequence[tuple[Artifact, float]], onto: Onto, shard_bytes: int | None
) -> Plan:
    """Base and adapters, each times its weight → a standard checkpoint of W0 + Σ wᵢ sᵢ BᵢAᵢ.

    Args:
        base: a checkpoint.
        adapters: PEFT adapters and their weights.
        onto: whether to add to W0 or to what NF4 makes of it.
        shard_bytes: most bytes of tensors in one file; None keeps the base's files.
    """

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        from pipeline.merge import merge_weighted

        given = [(adapter.path, weight) for adapter, weight in adapters]
        return merge_weighted(base.path, given, out, scratch, progress, onto=onto, shard_bytes=shard_bytes)

    names = ["adapter", *(f"adapter_{number}" for number in range(2, len(adapters) + 1))]
    inputs = {"base": base} | {name: adapter for name, (adapter, _) in zip(names, adapters, strict=True)}
    settings = {"weights": [weight for _, weight in adapters], "onto": onto, "shard_bytes": shard_bytes}
    return Plan(Stage("merged", "pipeline.merge", ("numpy", "ml-dtypes"), settings, inputs), work)


def calibration(conversations: int, system: str, checkpoint: Artifact, data: Mapping[str, Artifact]) -> Plan:
    """A checkpoint and training conversations → how loud what its widest products read and its caches are."""

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        from pipeline.calibrate import calibrate

        folders = [training.path for training in data.values()]
        return calibrate(checkpoint.path, folders, system, conversations, out, progress)

    settings = {"conversations": conversations, "system": system}
    inputs = {"checkpoint": checkpoint, **data}
    return Plan(Stage("calibration", "pipeline.calibrate", _MEASURING[:2], settings, inputs), work)


def rounding(
    settings: Export,
    system: str,
    checkpoint: Artifact,
    data: Mapping[str, Artifact],
    trained: tuple[Artifact, Artifact] | None = None,
) -> Plan:
    """A checkpoint and training conversations → its matrices, rounded as the objective asks.

    Args:
        settings: how.
        system: the system prompt.
        checkpoint: a merged one, or a base that several tasks share.
        data: training conversations, by the name of the input.
        trained: base and adapter that the checkpoint was merged from.
    """

    bits = (8,) if settings.precision == "int8" else (4, 8)

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        from pipeline.rounding.apart import Trained
        from pipeline.rounding.round import round_weights

        folders = [training.path for training in data.values()]
        merged_from = None if trained is None else Trained(*(each.path for each in trained))
        with TemporaryDirectory(dir=scratch) as name:
            return round_weights(
                checkpoint.path,
                folders,
                system,
                settings.conversations,
                settings.objective,
                bits,
                settings.weights_per_scale,
                merged_from,
                out,
                Path(name),
                progress,
            )

    chosen = {
        "conversations": settings.conversations,
        "system": system,
        "bits": bits,
        "block_size": settings.weights_per_scale,
        "objective": settings.objective.model_dump(mode="json"),
    }
    inputs = {"checkpoint": checkpoint, **data}
    inputs |= {} if trained is None else dict(zip(("base", "adapter"), trained, strict=True))
    libraries = ("numpy", *_MEASURING[:2])
    return Plan(Stage("rounding", "pipeline.rounding.round", libraries, chosen, inputs), work)


def onnx(settings: Export, merged: Artifact, measured: Mapping[str, Artifact]) -> Plan:
    """A checkpoint → ONNX model, tokenizer, genai_config.json.

    Args:
        settings: how.
        merged: the checkpoint.
        measured: what the stages `calibration` and `rounding` made of it, where there are any.
    """

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        if settings.exporter == "optimum":
            from export.optimum import export_with_optimum

            return export_with_optimum(merged.path, out, settings.context)
        from export.checkpoint import export_checkpoint

        return export_checkpoint(
            merged.path,
            out,
            settings.precision,
            settings.weights_per_scale,
            settings.context,
            progress,
            _path(measured, "calibration"),
            rounded=_path(measured, "rounding"),
            kv_cache=settings.kv_cache,
        )

    module = "export.optimum" if settings.exporter == "optimum" else "export.checkpoint"
    inputs = {"merged": merged, **measured}
    config = settings.model_dump(mode="json", exclude={"most_rank"})
    return Plan(Stage("onnx", module, _EXPORTING, config, inputs), work)


def _path(measured: Mapping[str, Artifact], stage: str) -> Path | None:
    return measured[stage].path if stage in measured else None


def switchable_onnx(settings: Export, base: Artifact, measured: Mapping[str, Artifact]) -> Plan:
    """A base → an ONNX model that takes adapters, tokenizer, genai_config.json."""

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        from export.branches import Switchable
        from export.checkpoint import export_checkpoint
        from pipeline.fingerprint import fingerprint

        return export_checkpoint(
            base.path,
            out,
            settings.precision,
            settings.weights_per_scale,
            settings.context,
            progress,
            _path(measured, "calibration"),
            Switchable(settings.most_rank, fingerprint(base.path).tensors),
            _path(measured, "rounding"),
            settings.kv_cache,
        )

    inputs = {"base": base, **measured}
    config = settings.model_dump(mode="json")
    return Plan(Stage("onnx", "export.checkpoint", _EXPORTING, config, inputs), work)


def adapters(base: Artifact, onnx: Artifact, trained: Mapping[str, Artifact]) -> Plan:
    """The adapter of each task → a file that the switchable graph takes, named as the task."""

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        from pipeline.unmerged import keep_unmerged

        given = {task: adapter.path for task, adapter in trained.items()}
        return {"ranks": keep_unmerged(given, base.path, onnx.path, onnx.path, out)}

    inputs = {"base": base, "onnx": onnx} | {f"adapter-{task}": each for task, each in trained.items()}
    libraries = ("numpy", "onnxruntime")
    return Plan(Stage("adapters", "pipeline.unmerged", libraries, sorted(trained), inputs), work)


@dataclass(frozen=True)
class Label:
    """What a bundle is called and how its model is asked.

    Attributes:
        name: of the bundle.
        system: the system prompt that the model was trained with.
        recipe: the settings that the model was made with, for the record.
        base_fingerprint: of the base's weights, where it is known.
    """

    name: str
    system: str
    recipe: Mapping[str, Any]
    base_fingerprint: str | None


def candidate(label: Label, onnx: Artifact, tools: Artifact, adapters: Artifact | None = None) -> Plan:
    """ONNX, tools and what is known of them → a candidate bundle.

    Args:
        label: name, prompt and recipe.
        onnx: what the export stage made.
        tools: a tools file, or a folder with `tools.json`.
        adapters: a folder of NAME.onnx_adapter files, for a switchable graph.
    """

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        from export.bundle import Description, answer_form, package
        from runtime.manifest import Lineage
        from runtime.sites import ADAPTER_SUFFIX

        precision, exporter = _exported_as(onnx.path)
        description = Description(
            name=label.name,
            precision=precision,
            exporter=exporter,
            lineage=Lineage(
                base=label.base_fingerprint or onnx.lineage.get("base", "unknown"),
                adapter=onnx.lineage.get("adapter"),
                dataset=onnx.lineage.get("data"),
                recipe=dict(label.recipe),
                versions=dict(versions(("cockpit-edge", *_TRAINING, *_EXPORTING, "onnxruntime"))),
            ),
            system=label.system,
            form=answer_form(onnx.path),
        )
        path = tools.path / "tools.json" if tools.path.is_dir() else tools.path
        files = sorted(adapters.path.glob(f"*{ADAPTER_SUFFIX}")) if adapters else []
        manifest = package(onnx.path, out, path, description, files)
        return {"files": len(manifest.files)}

    config = {
        "name": label.name,
        "system": label.system,
        "recipe": label.recipe,
        "base": label.base_fingerprint,
    }
    inputs = {"onnx": onnx, "tools": tools} | ({"adapters": adapters} if adapters else {})
    return Plan(Stage("candidate", "export.bundle", ("onnx",), config, inputs), work)


@dataclass(frozen=True)
class Origin:
    """What a bundle was made from, and should be true to.

    Attributes:
        base: the base checkpoint.
        adapter: the adapter that was trained on it.
        merged: the checkpoint that was exported, where it is at hand; without it, it is made again.
    """

    base: Artifact
    adapter: Artifact
    merged: Artifact | None


def evidence(
    settings: Validate,
    bundle: Artifact,
    origin: Origin,
    data: Artifact,
    others: Mapping[str, Artifact],
    task: str | None = None,
) -> Plan:
    """A bundle, and what it must be true to → measurements.

    Args:
        settings: how much to measure.
        bundle: the candidate.
        origin: what it was made from.
        data: test records.
        others: bundles timed beside it.
        task: of a bundle with several, the one whose adapter is `origin`'s; it was never merged.
    """

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        from pipeline.evidence.measure import Model, measure, merge_again
        from pipeline.merging.qlora import trained_beside

        base, adapter = origin.base.path, origin.adapter.path
        beside = {name: other.path for name, other in others.items()}
        # Scratch survives a kill, and half a form must not be taken for a whole one.
        with TemporaryDirectory(dir=scratch) as name:
            fresh = Path(name)
            merged = origin.merged.path if origin.merged else None
            if merged is None and task is None:
                merged = merge_again(base, adapter, fresh, progress)
            model = Model(base, trained_beside(base, adapter, fresh, progress), adapter, merged, task)
            return measure(settings, bundle.path, beside, model, data.path, out, fresh, progress)

    # Latency belongs to the machine: evidence of another one is measured again, not reused.
    config = {"machine": asdict(this_machine()), **settings.model_dump(mode="json")}
    if task is not None:
        config["task"] = task
    inputs = {"bundle": bundle, "base": origin.base, "adapter": origin.adapter, "data": data, **others}
    if origin.merged is not None:
        inputs["merged"] = origin.merged
    return Plan(Stage("evidence", "pipeline.evidence.measure", _MEASURING, config, inputs), work)


def switching(bundle: Artifact, data: Mapping[str, Artifact], threads: int) -> Plan:
    """A bundle with several tasks, and test records of each → whether one task leaves a trace in another."""

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        from pipeline.evidence.switching import measure_switching

        tests = {task: records.path / "test.jsonl" for task, records in data.items()}
        return measure_switching(bundle.path, tests, threads, out, progress)

    inputs = {"bundle": bundle} | {f"data-{task}": records for task, records in data.items()}
    config = {"machine": asdict(this_machine()), "threads": threads}
    return Plan(
        Stage("switching", "pipeline.evidence.switching", ("onnxruntime", "tokenizers"), config, inputs), work
    )


def bundle(candidate: Artifact, report: Path, gate: GateReport) -> Plan:
    """A candidate and the verdict it passed with → the bundle; a report in a folder is named after both."""

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        from export.bundle import admit

        files = {
            "-".join(path.relative_to(report).parts): path
            for path in sorted(report.rglob("*"))
            if path.is_file()
        }
        manifest = admit(candidate.path, out, gate, files)
        return {"files": len(manifest.files)}

    inputs = {"candidate": candidate, "report": artifact(report)}
    return Plan(Stage("bundle", "export.bundle", (), {}, inputs), work)


def _exported_as(onnx: Path) -> tuple[Precision, Exporter]:
    """How an ONNX directory was made, from its record."""
    try:
        settings = Export.model_validate(json.loads((onnx / RECORD).read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{onnx} has no record of how it was exported; make it with `cockpit export`"
        ) from error
    return settings.precision, settings.exporter
