"""Each stage as a plan: what shapes its output, and the work that makes it.

A build runs these plans one behind the other; a verb of the command line runs one of them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.stage import Artifact, Progress, Stage, artifact

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
    return Plan(Stage("adapter", "pipeline.train", _TRAINING, settings, {"base": base, "data": data}), work)


def merged(base: Artifact, adapter: Artifact) -> Plan:
    """Base and adapter → a standard checkpoint of W0 + s·BA."""

    def work(out: Path, scratch: Path, progress: Progress) -> Mapping[str, Any]:
        from pipeline.merge import merge

        return merge(base.path, adapter.path, out, progress)

    inputs = {"base": base, "adapter": adapter}
    return Plan(Stage("merged", "pipeline.merge", ("numpy", "ml-dtypes"), {}, inputs), work)
