"""A tiny switchable graph and PEFT adapters for it, made without training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from export.adapter import write_adapter
from export.branches import Switchable
from export.graph import Precision, write_graph
from export.weights import Checkpoint
from pipeline.adapter import read_adapter
from pipeline.factors import belonging, factors
from pipeline.fingerprint import fingerprint
from pipeline.quiet import quiet_transformers
from runtime.sites import FactorType, read_sites

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MOST_RANK = 8


def peft_adapter(
    base: Path, out: Path, seed: int, kind: type[LoraConfig] = LoraConfig, **settings: Any
) -> Path:
    """A random adapter folder for a checkpoint, by PEFT itself."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    chosen = {"r": 4, "lora_alpha": 12, "target_modules": SEVEN, "task_type": "CAUSAL_LM"} | settings
    with warnings.catch_warnings(action="ignore"):  # PEFT doubts that some of them can be merged
        wrapped = get_peft_model(model, kind(**chosen))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    with warnings.catch_warnings(action="ignore"):
        wrapped.save_pretrained(out, save_embedding_layers=False)
    return out


def unmerged(base: Path, adapter: Path | None) -> PreTrainedModel | PeftModel:
    """The model that PEFT runs, W0 x + s B A x."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with quiet_transformers():
        return model.eval() if adapter is None else PeftModel.from_pretrained(model, adapter).eval()


def switchable_graph(base: Path, out: Path, precision: Precision, context: int) -> Path:
    """The checkpoint as a graph that takes adapters."""
    out.mkdir(exist_ok=True)
    digests: Mapping[str, str] = fingerprint(base).tensors
    write_graph(
        base,
        out,
        precision,
        32,
        context,
        lambda what, done, total: None,
        switchable=Switchable(MOST_RANK, digests),
    )
    return out


def converted(
    base: Path,
    adapter: Path,
    exported: Path,
    graph: Path,
    out: Path,
    name: str,
    dtype: FactorType = "float32",
) -> Path:
    """A PEFT adapter as NAME.onnx_adapter for a graph; `exported` has the tokenizer."""
    understood = read_adapter(adapter)
    out.mkdir(exist_ok=True)
    write_adapter(
        name,
        factors(understood, Checkpoint(base)),
        read_sites(graph),
        belonging(understood, base, exported),
        dtype,
        out,
    )
    return out / f"{name}.onnx_adapter"
