"""A base as training holds it: in one number format, or with 4-bit weights (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from pipeline.quiet import quiet_transformers
from pipeline.training.attention import PACKED
from pipeline.training.precision import Precision
from runtime.errors import CheckpointError, ConfigError

BLOCK = 64
"""Weights that share one scale in 4-bit NF4: bitsandbytes' default, and the paper's."""


def load_base(base: Path, precision: Precision, *, four_bit: bool) -> PreTrainedModel:
    """A checkpoint as a model whose attention reads packed rows.

    Args:
        base: a checkpoint directory.
        precision: of weights and products.
        four_bit: hold the linear layers of the blocks in NF4; norms, embedding and head stay as they are.

    Raises:
        ConfigError: 4-bit weights cannot be had here; says why and what to do.
        CheckpointError: the base cannot be loaded.
    """
    quantized: dict[str, Any] = {}
    if four_bit:
        if obstacle := qlora_obstacle(precision.device):
            raise ConfigError(
                f'train.method = "qlora" cannot run here: {obstacle.reason}; {obstacle.remedy}, or take '
                'train.method = "lora"'
            )
        quantized["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=precision.dtype,
            bnb_4bit_use_double_quant=False,
        )
        quantized["device_map"] = {"": torch.cuda.current_device() if precision.device == "cuda" else "cpu"}
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            base,
            # 4-bit weights are made of the numbers in the file, not of what a narrower type leaves of them:
            # a merge finds the same ones there.
            dtype="auto" if four_bit else precision.dtype,
            attn_implementation=PACKED,
            use_safetensors=True,
            local_files_only=True,
            **quantized,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"cannot load {base}: {error}") from error
    model.config.use_cache = False
    if four_bit:
        _narrow_the_rest(model, precision.dtype)
        _keep_gradients(model)
    return model


@dataclass(frozen=True)
class Obstacle:
    """Why something cannot be done here, and what to do about it."""

    reason: str
    remedy: str


def qlora_obstacle(device: str) -> Obstacle | None:
    """What keeps 4-bit weights from being multiplied on a device, found by trying; none where they can be."""
    try:
        installed = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        return Obstacle("bitsandbytes is not installed", "pip install 'cockpit-edge[qlora]'")
    try:
        with quiet_transformers():
            _multiply_in_four_bits(device)
    except Exception as error:  # noqa: BLE001 - a library for another machine fails in any way it likes
        said = str(error).partition("\n")[0] or type(error).__name__
        return Obstacle(
            f"bitsandbytes {installed} cannot multiply 4-bit weights on this machine's {device} ({said})",
            "pip install 'bitsandbytes==0.50.2'",
        )
    return None


def _narrow_the_rest(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Norms, embedding and head in the type of products."""
    for parameter in model.parameters():
        if not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.to(dtype)


def _keep_gradients(model: torch.nn.Module) -> None:
    """Have 4-bit layers keep the layout that gradients go through.

    On a CPU with AVX-512 BF16, bitsandbytes would repack them for good at the first evaluation, for a kernel
    that has no backward; training behind a validation would have wrong gradients without an error.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False


def _multiply_in_four_bits(device: str) -> None:
    import bitsandbytes

    linear: Any = bitsandbytes.nn.Linear4bit  # type: ignore[attr-defined]
    layer = linear(
        BLOCK, BLOCK, bias=False, compute_dtype=torch.float32, compress_statistics=False, quant_type="nf4"
    ).to(device)
    x = torch.ones(1, BLOCK, device=device, requires_grad=True)
    layer(x).sum().backward()
    if x.grad is None or not torch.isfinite(x.grad).all():
        raise RuntimeError("no gradient comes through")
