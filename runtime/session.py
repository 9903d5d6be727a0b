"""ONNX Runtime sessions: which provider runs, how many threads, and errors a person can act on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Literal

import onnxruntime

from runtime.errors import BundleError, UsageError

Provider = Literal["cpu", "cuda"]

_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERRORS_ONLY = 3
_SPIN_US = 5_000
"""How long an idle thread waits in a loop: longer than anything that lies between two runs of one answer.
ONNX Runtime's own time is some 30 ms, behind each answer and whenever a session is opened."""


def open_session(
    path: Path,
    threads: int,
    provider: Provider,
    spin: bool,
    optimized: bool = False,
    parsed: Event | None = None,
) -> onnxruntime.InferenceSession:
    """Open a graph on exactly one kind of processor.

    Args:
        path: the .onnx file; external data beside it is mapped, not read.
        threads: threads of one operator, 1 to the machine's cores.
        provider: where it must run. A provider that cannot be had is an error, never a slower substitute.
        spin: whether idle threads wait in a loop; it costs idle CPU time and saves a third of decode time.
        optimized: the graph was written by ONNX Runtime itself, which need not look for fusions again.
        parsed: is set when the graph has been read: what then takes long leaves the interpreter to others.

    Raises:
        UsageError: the threads or the provider cannot be had on this machine.
        BundleError: ONNX Runtime refuses the graph.
    """
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise UsageError(f"threads must be 1 to {cores} on this machine, not {threads}")
    if provider not in _NAMES:
        raise UsageError(f"provider must be one of {', '.join(_NAMES)}, not {provider!r:.40}")
    name = _NAMES[provider]
    if name not in onnxruntime.get_available_providers():
        raise UsageError(
            f"this build of ONNX Runtime cannot use {provider}; it has "
            f"{', '.join(onnxruntime.get_available_providers())}; install the gpu extra or use cpu"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
    if optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=[name], disabled_optimizers=_no_optimizers(parsed)
        )
    except Exception as error:  # its exception classes share no base but Exception
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot open {path.name}: {first_line(error)}"
        ) from error
    if name not in session.get_providers():
        raise UsageError(f"{provider} is not usable on this machine: ONNX Runtime fell back to the CPU")
    return session


def _no_optimizers(parsed: Event | None) -> Iterator[str]:
    """None to leave out. ONNX Runtime looks what there are between reading the graph and all else."""
    if parsed is not None:
        parsed.set()
    yield from ()


def first_line(error: Exception) -> str:
    """The first line of a foreign error, which is what fits in a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
