"""LoRA layers in as few products as they have: W x + s · B A x, forward and backward (arXiv 2106.09685).

PEFT's own forward widens the input, scales and adds in passes over whole activations, layer by layer, and
autograd keeps one copy for each. Here scale and sum are part of the products, layers that read the same
input (queries, keys and values; gate and up) are one stack, and the factors, kept in float32, are rounded
once to the type of the base. The factors stay PEFT's parameters; the same function in float32 to rounding.

Shapes: M tokens, n layers in a stack, N = Σ outputs, R = Σ ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft.tuners.lora import Linear
from torch.nn.functional import linear

ADAPTER = "default"
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Siblings that every Llama-shaped decoder calls on one input, in the order they are called."""


@contextmanager
def fused_lora(model: torch.nn.Module) -> Iterator[None]:
    """Have a PEFT model's LoRA layers compute with `lora_stack`; those with dropout keep PEFT's way."""
    stacks = [_Stack(layers) for layers in _grouped(model)]
    for stack in stacks:
        for place, layer in enumerate(stack.layers):
            vars(layer)["forward"] = partial(stack.forward, place)
    try:
        yield
    finally:
        for stack in stacks:
            for layer in stack.layers:
                del vars(layer)["forward"]


def lora_stack(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scales: Sequence[float],
    factors: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """Several LoRA layers on one input: x (…, in) → n results (…, out).

    Args:
        x: the input.
        weight: (N, in), the layers' frozen weights one under the other.
        bias: (N,), or none.
        scales: s of each layer.
        factors: of each layer a (rank, in) and b (out, rank), trained.
    """
    results: tuple[torch.Tensor, ...] = _LoraStack.apply(x, weight, bias, tuple(scales), *factors)  # type: ignore[no-untyped-call]
    return results


def _grouped(model: torch.nn.Module) -> list[list[Linear]]:
    """Every plain LoRA layer once, siblings that read the same input together where all are plain."""
    groups: list[list[Linear]] = []
    for parent in model.modules():
        children = dict(parent.named_children())
        plain = {
            name: child for name, child in children.items() if isinstance(child, Linear) and _is_plain(child)
        }
        for names in SAME_INPUT:
            together = [plain[name] for name in names if name in plain]
            biased = {layer.get_base_layer().bias is None for layer in together}
            if len(together) == len(names) and len(biased) == 1:
                groups.append(together)
                for name in names:
                    del plain[name]
        groups += [[layer] for layer in plain.values()]
    return groups


def _is_plain(layer: Linear) -> bool:
    dropout = layer.lora_dropout[ADAPTER]
    base = layer.get_base_layer()
    return type(base) is torch.nn.Linear and isinstance(dropout, torch.nn.Identity) and not layer.lora_variant


class _Stack:
    """Layers that read one input, computed when the first of them is called."""

    def __init__(self, layers: Sequence[Linear]) -> None:
        self.layers = layers
        bases = [cast(torch.nn.Linear, layer.get_base_layer()) for layer in layers]
        self._weight = _joined([base.weight for base in bases])
        biases = [base.bias for base in bases if base.bias is not None]
        self._bias = _joined(biases) if biases else None
        self._scales = [layer.scaling[ADAPTER] for layer in layers]
        self._factors = [factor for layer in layers for factor in _factors(layer)]
        self._input: torch.Tensor | None = None
        self._results: tuple[torch.Tensor, ...] = ()

    def forward(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """What the layer at `place` gives for x."""
        if self._input is not x:
            self._results = lora_stack(x, self._weight, self._bias, self._scales, self._factors)
            self._input = x
        result = self._results[place]
        if place == len(self.layers) - 1:
            # The last has been asked: what is kept longer would be kept until the next step.
            self._input, self._results = None, ()
        return result


def _factors(layer: Linear) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = (cast(torch.nn.Linear, factor[ADAPTER]) for factor in (layer.lora_A, layer.lora_B))
    return a.weight, b.weight


def _joined(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """The parameters one under the other, in one memory, of which each becomes a part."""
    if len(parameters) == 1:
        return parameters[0]
    whole = torch.cat([parameter.data for parameter in parameters])
    sizes = [len(parameter) for parameter in parameters]
    for parameter, part in zip(parameters, torch.split_with_sizes(whole, sizes), strict=True):
        parameter.data = part
    return whole


class _LoraStack(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scales: tuple[float, ...],
        *factors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        rows = x.flatten(0, -2)  # (M, in)
        context.kept = factors[0].dtype
        context.ranks = [len(a) for a in factors[::2]]
        context.outputs = [len(b) for b in factors[1::2]]
        a = torch.cat(factors[::2]).to(x.dtype)  # (R, in)
        scaled = [b * scale for b, scale in zip(factors[1::2], scales, strict=True)]
        b = torch.block_diag(*scaled).to(x.dtype)  # type: ignore[no-untyped-call]  # (N, R)
        inner = rows @ a.T  # (M, R)
        result = linear(rows, weight, bias).addmm_(inner, b.T)  # (M, N)
        context.save_for_backward(rows, weight, a, b, inner)
        context.scales = scales
        return tuple(
            part.view(*x.shape[:-1], -1) for part in torch.split_with_sizes(result, context.outputs, dim=1)
        )

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, a, b, inner = context.saved_tensors
        flat = [gradient.flatten(0, -2) for gradient in gradients]
        out = flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)  # (M, N)
        to_inner = out @ b  # (M, R)
        to_x = None
        if context.needs_input_grad[0]:
            to_x = (out @ weight).addmm_(to_inner, a).view(*gradients[0].shape[:-1], -1)
        to_a = torch.split_with_sizes((to_inner.T @ rows).to(context.kept), context.ranks)
        # Off the diagonal of blocks are products of one layer's gradient with another's rank.
        crossed = torch.split_with_sizes(out.T @ inner, context.outputs)  # n of (out, R)
        to_b = [
            torch.split_with_sizes(part, context.ranks, dim=1)[place].to(context.kept).mul_(scale)
            for place, (part, scale) in enumerate(zip(crossed, context.scales, strict=True))
        ]
        pairs = [gradient for pair in zip(to_a, to_b, strict=True) for gradient in pair]
        return (to_x, None, None, None, *pairs)
