"""What the kernels that ONNX Runtime chooses, and the order in which they pack weights, depend on."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

_TELLING = (
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "flags",
    "Features",
    "CPU implementer",
    "CPU architecture",
    "CPU variant",
    "CPU part",
    "CPU revision",
)
"""What /proc/cpuinfo says of a processor and not of its present state; x86 and Arm."""


def processor() -> list[str]:
    """This machine's processor and system."""
    return [platform.system(), platform.machine(), platform.processor(), *_cpuinfo()]


def _cpuinfo() -> Iterator[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    for line in text.split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        if name.strip() in _TELLING:
            yield f"{name.strip()}:{value.strip()}"
