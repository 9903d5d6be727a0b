"""A LoRA layer in as few products as it has: W x + s · B A x, forward and backward (arXiv 2106.09685).

PEFT's own forward widens the input, scales and adds in passes over whole activations, and autograd keeps
one copy for each. Here scale and sum are part of the products, and the factors, kept in float32, are rounded
once to the type of the base. The factors stay PEFT's parameters; the same function in float32 to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch.nn.functional import linear

ADAPTER = "default"


@contextmanager
def fused_lora(model: torch.nn.Module) -> Iterator[None]:
    """Have a PEFT model's LoRA layers compute with `lora_linear`; those with dropout keep PEFT's way."""
    layers = [layer for layer in model.modules() if isinstance(layer, Linear) and _is_plain(layer)]
    for layer in layers:
        vars(layer)["forward"] = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """x (…, in) → (…, out): weight (out, in) frozen, a (rank, in) and b (out, rank) trained."""
    result: torch.Tensor = _LoraLinear.apply(x, weight, bias, a, b, scale)  # type: ignore[no-untyped-call]
    return result


def _is_plain(layer: Linear) -> bool:
    dropout = layer.lora_dropout[ADAPTER]
    base = layer.get_base_layer()
    return type(base) is torch.nn.Linear and isinstance(dropout, torch.nn.Identity) and not layer.lora_variant


def _forward(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    base = cast(torch.nn.Linear, layer.get_base_layer())
    a, b = (cast(torch.nn.Linear, factor[ADAPTER]) for factor in (layer.lora_A, layer.lora_B))
    return lora_linear(x, base.weight, base.bias, a.weight, b.weight, layer.scaling[ADAPTER])


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        rows = x.flatten(0, -2)  # (M, in)
        context.kept = a.dtype
        a, b = a.to(x.dtype), b.to(x.dtype)
        inner = rows @ a.T  # (M, rank)
        result = linear(rows, weight, bias).addmm_(inner, b.T, alpha=scale)
        context.save_for_backward(rows, weight, a, b, inner)
        context.scale = scale
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(
        context: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, None, None, torch.Tensor, torch.Tensor, None]:
        rows, weight, a, b, inner = context.saved_tensors
        out = gradient.flatten(0, -2)  # (M, out)
        to_inner = (out @ b).mul_(context.scale)  # (M, rank)
        to_x = None
        if context.needs_input_grad[0]:
            to_x = (out @ weight).addmm_(to_inner, a).view(*gradient.shape[:-1], -1)
        to_a = (to_inner.T @ rows).to(context.kept)
        to_b = (out.T @ inner).to(context.kept).mul_(context.scale)
        return to_x, None, None, to_a, to_b, None
