"""Attention in a packed row, without the products that its mask would throw away.

A row is a prefix of P tokens and K completions; each completion sees the prefix and itself. A (T, T) score
matrix is mostly barred, so completions are padded to the longest, L, and multiplied side by side: their own
keys K times (L, L), the prefix's keys once for all.

Shapes: T = tokens of the row, N = key and value heads, G = query heads per key head, D = head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED = "packed"
"""The name that transformers knows `packed_attention` by."""


def completion_slots(segments: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Where completions lie in a row, and where they lie once they are padded.

    Args:
        segments: (T,) 0 for the prefix, k for the k-th completion.

    Returns:
        (K, L) index into the row, a short completion's last token repeated as padding; and
        (T − P,) index into the K · L padded tokens, in the row's order.
    """
    places: dict[int, list[int]] = {}
    for place, segment in enumerate(segments):
        if segment:
            places.setdefault(segment, []).append(place)
    longest = max(map(len, places.values()))
    slots = [own + own[-1:] * (longest - len(own)) for own in places.values()]
    real = [k * longest + i for k, own in enumerate(places.values()) for i in range(len(own))]
    return torch.tensor(slots), torch.tensor(real)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    slots: torch.Tensor,
    real: torch.Tensor,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of one row: query (1, N·G, T, D), key and value (1, N, T, D) → (1, T, N·G, D).

    Args:
        module: the attention layer; unused, as transformers' interface has it.
        query: queries, rotated.
        key: keys, rotated.
        value: values.
        attention_mask: none; `slots` say who sees whom.
        scaling: of the scores.
        slots: see `completion_slots`.
        real: see `completion_slots`.
        unused: what transformers tells other implementations.
    """
    (completions, length), heads, size = slots.shape, key.shape[1], key.shape[3]
    groups = query.shape[1] // heads
    prefix = query.shape[2] - len(real)
    first_q, q = split_row(query[0].transpose(0, 1), slots, real)
    first_k, k = split_row(key[0].transpose(0, 1), slots, real)
    first_v, v = split_row(value[0].transpose(0, 1), slots, real)
    q = q.view(completions, length, heads, groups, size).permute(2, 0, 3, 1, 4)
    q = q.reshape(heads, completions, groups * length, size)
    first_k, first_v = first_k.transpose(0, 1), first_v.transpose(0, 1)  # (N, P, D)

    own = q @ k.permute(2, 0, 3, 1)  # (N, K, G·L, L)
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1).repeat(groups, 1)
    own = own.masked_fill(later, torch.finfo(own.dtype).min)
    shared = q.flatten(1, 2) @ first_k.transpose(1, 2)  # (N, K·G·L, P)
    scores = torch.cat((shared.view(*own.shape[:3], prefix), own), dim=3) * scaling
    weights = scores.softmax(dim=3, dtype=torch.float32).to(value.dtype)
    to_shared, to_own = torch.split_with_sizes(weights, (prefix, length), dim=3)
    seen = to_own @ v.permute(2, 0, 1, 3)  # (N, K, G·L, D)
    seen = seen + (to_shared.flatten(1, 2) @ first_v).view(seen.shape)
    seen = seen.view(heads, completions, groups, length, size).permute(1, 3, 0, 2, 4)
    seen = seen.reshape(completions, length, heads * groups, size)

    first = scaled_dot_product_attention(
        first_q.transpose(0, 1)[None],
        first_k[None],
        first_v[None],
        is_causal=True,
        scale=scaling,
        enable_gqa=groups > 1,
    )
    return join_row(first[0].transpose(0, 1), seen, slots, real)[None], None


def split_row(
    row: torch.Tensor, slots: torch.Tensor, real: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A row (T, H, D) → its prefix (P, H, D) and its completions, padded: (K, L, H, D)."""
    first, padded = _Split.apply(row, slots, real)  # type: ignore[no-untyped-call]
    return first, padded


def join_row(
    first: torch.Tensor, padded: torch.Tensor, slots: torch.Tensor, real: torch.Tensor
) -> torch.Tensor:
    """The inverse of `split_row`: padding is dropped, and has no gradient."""
    row: torch.Tensor = _Join.apply(first, padded, slots, real)  # type: ignore[no-untyped-call]
    return row


class _Split(torch.autograd.Function):
    """Each token has one place, so the gradient of a copy is a copy; autograd would add row by row."""

    @staticmethod
    def forward(
        context: Any, row: torch.Tensor, slots: torch.Tensor, real: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        context.save_for_backward(real)
        padded = row.index_select(0, slots.flatten()).view(*slots.shape, *row.shape[1:])
        return row[: len(row) - len(real)].clone(), padded

    @staticmethod
    def backward(context: Any, first: torch.Tensor, padded: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (real,) = context.saved_tensors
        return torch.cat((first, padded.flatten(0, 1).index_select(0, real))), None, None


class _Join(torch.autograd.Function):
    """See `_Split`."""

    @staticmethod
    def forward(
        context: Any, first: torch.Tensor, padded: torch.Tensor, slots: torch.Tensor, real: torch.Tensor
    ) -> torch.Tensor:
        context.save_for_backward(slots, real)
        return torch.cat((first, padded.flatten(0, 1).index_select(0, real)))

    @staticmethod
    def backward(context: Any, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        slots, real = context.saved_tensors
        first, own = torch.split_with_sizes(row, (len(row) - len(real), len(real)))
        padded = row.new_zeros(slots.numel(), *row.shape[1:]).index_copy_(0, real, own)
        return first, padded.view(*slots.shape, *row.shape[1:]), None, None


AttentionInterface.register(PACKED, packed_attention)
