"""Where training runs, and in which number format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

CPU_INFO = Path("/proc/cpuinfo")
_NATIVE_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names that Linux gives the instructions (x86 AVX-512 and AMX, Arm) that multiply bfloat16."""

_AMPERE = (8, 0)
"""First NVIDIA compute capability that multiplies bfloat16."""


@dataclass(frozen=True)
class Precision:
    """How a model is held and multiplied while it trains.

    Attributes:
        device: "cpu" or "cuda".
        dtype: of the base's weights and of products; LoRA's factors are kept in float32.
    """

    device: Literal["cpu", "cuda"]
    dtype: torch.dtype


def choose_precision(wanted: Literal["auto", "float32", "bfloat16"]) -> Precision:
    """A GPU where there is one; bfloat16 when asked for, or where it is native and nothing was asked for."""
    cuda = torch.cuda.is_available()
    native = torch.cuda.get_device_capability() >= _AMPERE if cuda else cpu_multiplies_bfloat16()
    bfloat16 = wanted == "bfloat16" or (wanted == "auto" and native)
    return Precision(
        device="cuda" if cuda else "cpu",
        dtype=torch.bfloat16 if bfloat16 else torch.float32,
    )


def cpu_multiplies_bfloat16(cpu_info: Path = CPU_INFO) -> bool:
    """Whether the processor has instructions for it; False where the kernel does not say."""
    try:
        lines = cpu_info.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return not _NATIVE_BFLOAT16.isdisjoint(features.split())
