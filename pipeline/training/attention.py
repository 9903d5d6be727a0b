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

    def padded(rows: torch.Tensor) -> torch.Tensor:
        """(1, H, T, D) → (H, K, L, D)."""
        chosen = rows[0].transpose(0, 1).index_select(0, slots.flatten())
        return chosen.view(completions, length, -1, size).permute(2, 0, 1, 3)

    q = padded(query).reshape(heads, groups, completions, length, size).transpose(1, 2)
    q = q.reshape(heads, completions, groups * length, size)
    own = q @ padded(key).transpose(2, 3)  # (N, K, G·L, L)
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1).repeat(groups, 1)
    own = own.masked_fill(later, torch.finfo(own.dtype).min)
    shared = q.flatten(1, 2) @ key[0, :, :prefix].transpose(1, 2)  # (N, K·G·L, P)
    scores = torch.cat((shared.view(*own.shape[:3], prefix), own), dim=3) * scaling
    weights = scores.softmax(dim=3, dtype=torch.float32).to(value.dtype)
    seen = weights[..., prefix:] @ padded(value)  # (N, K, G·L, D)
    seen = seen + (weights[..., :prefix].flatten(1, 2) @ value[0, :, :prefix]).view(seen.shape)
    seen = seen.view(heads, completions, groups, length, size).permute(1, 3, 0, 2, 4)
    seen = seen.reshape(completions * length, heads * groups, size).index_select(0, real)
    if not prefix:
        return seen[None], None
    first = scaled_dot_product_attention(
        query[:, :, :prefix],
        key[:, :, :prefix],
        value[:, :, :prefix],
        is_causal=True,
        scale=scaling,
        enable_gqa=groups > 1,
    )
    return torch.cat((first.transpose(1, 2), seen[None]), dim=1), None


AttentionInterface.register(PACKED, packed_attention)
