"""What quality.py compares: forms of one checkpoint, and the programs of peers that run them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_WEIGHTS = {"ours": "*.onnx*", "OpenVINO": "openvino_model.*"}


@dataclass(frozen=True)
class Form:
    """A model in the format of an engine."""

    engine: Literal["ours", "llama.cpp", "OpenVINO"]
    label: str
    path: Path

    @property
    def name(self) -> str:
        """As speed.py names it."""
        return f"{self.engine} {self.label}"

    @property
    def nbytes(self) -> int:
        """Of graphs and weights. A GGUF has its vocabulary in it, about 2 MB here."""
        if self.engine == "llama.cpp":
            return self.path.stat().st_size
        return sum(file.stat().st_size for file in self.path.glob(_WEIGHTS[self.engine]))


@dataclass(frozen=True)
class Peers:
    """Where peers' programs are; None for those that take no part.

    Attributes:
        llama: the folder of llama-perplexity and llama-server.
        gguf_f32: the checkpoint for llama.cpp, in float32.
        openvino_python: an interpreter that has openvino-genai.
    """

    llama: Path | None
    gguf_f32: Path | None
    openvino_python: Path | None
