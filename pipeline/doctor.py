"""What this machine can do for the pipeline, and how to get what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.evidence.latency import this_machine

Status = Literal["ok", "missing", "note"]

DISK_NEEDED = 4 * 2**30
"""Base, merged checkpoint, ONNX model and bundle of the default config, with room for checkpoints."""

MEMORY_NEEDED = 6 * 2**30
"""Peak of training the default config, with the system beside it."""

_BUILD = ("torch", "transformers", "peft", "accelerate", "safetensors", "onnx", "onnx-ir", "gguf")
_DEVICE = ("numpy", "tokenizers", "jinja2", "llguidance")


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        subject: what was looked at.
        status: `missing` stops a build, `note` is worth knowing, `ok` is fine.
        detail: what was found.
        remedy: what to do about it, empty when there is nothing to do.
    """

    subject: str
    status: Status
    detail: str
    remedy: str = ""


def examine(runs: Path) -> tuple[Finding, ...]:
    """Look at everything a build needs; changes nothing."""
    return (
        _python(),
        _processor(),
        _memory(),
        _disk(runs),
        *(_package(name, "build") for name in _BUILD),
        *(_package(name, "") for name in _DEVICE),
        _onnxruntime(),
        _gpu(),
        _bfloat16(),
        _qlora(),
        _optional("optimum-onnx", "exporting architectures the graph builder does not know", "optimum"),
    )


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether a build can start."""
    return all(finding.status != "missing" for finding in findings)


def _python() -> Finding:
    fine = sys.version_info >= (3, 11)
    return Finding(
        "Python",
        "ok" if fine else "missing",
        platform.python_version(),
        "" if fine else "install Python 3.11 or newer",
    )


def _processor() -> Finding:
    machine = this_machine()
    features = " ".join(machine.features) or "no known vector extension"
    return Finding("processor", "ok", f"{machine.processor}, {machine.cores} cores, {features}")


def _memory() -> Finding:
    memory = this_machine().memory_bytes
    if memory >= MEMORY_NEEDED:
        return Finding("memory", "ok", _gib(memory))
    return Finding("memory", "note", _gib(memory), f"training the default config wants {_gib(MEMORY_NEEDED)}")


def _disk(runs: Path) -> Finding:
    place = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free >= DISK_NEEDED:
        return Finding("disk", "ok", f"{_gib(free)} free at {place}")
    return Finding(
        "disk", "missing", f"{_gib(free)} free at {place}", f"free {_gib(DISK_NEEDED)}, or give --runs DIR"
    )


def _package(name: str, extra: str) -> Finding:
    try:
        return Finding(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        wanted = f"pip install 'cockpit-edge[{extra}]'" if extra else "pip install cockpit-edge"
        return Finding(name, "missing", "not installed", wanted)


def _optional(name: str, purpose: str, extra: str) -> Finding:
    found = _package(name, extra)
    if found.status == "ok":
        return found
    return Finding(name, "note", "not installed", f"{found.remedy} for {purpose}")


def _onnxruntime() -> Finding:
    builds = [name for name in ("onnxruntime", "onnxruntime-gpu") if _package(name, "").status == "ok"]
    if not builds:
        return Finding(
            "onnxruntime", "missing", "not installed", "pip install 'cockpit-edge[cpu]' or '[gpu]'"
        )
    if len(builds) == 2:
        return Finding(
            "onnxruntime",
            "missing",
            "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other",
            "pip uninstall both, then install one extra: cpu or gpu",
        )
    providers = importlib.import_module("onnxruntime").get_available_providers()
    return Finding(
        builds[0], "ok", f"{importlib.metadata.version(builds[0])}, providers: {', '.join(providers)}"
    )


def _gpu() -> Finding:
    if _package("torch", "").status != "ok":
        return Finding("GPU", "note", "unknown without torch")
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return Finding("GPU", "note", "none that torch can use; training runs on the CPU")
    return Finding("GPU", "ok", f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")


def _qlora() -> Finding:
    if any(_package(name, "").status != "ok" for name in ("torch", "transformers", "peft", "accelerate")):
        return Finding("QLoRA", "note", "unknown without torch, transformers, peft and accelerate")
    torch, loading = importlib.import_module("torch"), importlib.import_module("pipeline.training.loading")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    obstacle = loading.qlora_obstacle(device)
    if obstacle is not None:
        return Finding("QLoRA", "note", obstacle.reason, f"{obstacle.remedy} for train.method = qlora")
    return Finding(
        "QLoRA", "ok", f"bitsandbytes {importlib.metadata.version('bitsandbytes')} multiplies NF4 on {device}"
    )


def _bfloat16() -> Finding:
    if {"avx512_bf16", "amx_int8", "bf16"} & set(this_machine().features):
        return Finding("bfloat16", "ok", "multiplied by the processor; training uses it")
    return Finding("bfloat16", "note", "not native here; CPU training uses float32")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
