"""Which tensors a checkpoint must have, and in what shape: no more than the graph has places for."""

from __future__ import annotations

import numpy as np

from export.architecture import Architecture
from export.matrix import FLOAT_TYPES, float_rows
from export.weights import Checkpoint
from runtime.errors import CheckpointError, ExportError

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
UNREAD = "rotary_emb.inv_freq"
"""Ends the name of a buffer that old checkpoints store and config.json determines."""


def check_shapes(a: Architecture, weights: Checkpoint) -> None:
    """Every tensor that the config promises, with its shape, and no other.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
        ExportError: a tensor would be left out of the graph.
    """
    expected = _expected(a)
    present = set(weights.names)
    if missing := [name for name in expected if name not in present]:
        raise CheckpointError(f"{weights.directory} lacks {_few(missing)}, which its config.json promises")
    for name, shape in expected.items():
        if weights.shape(name) != shape:
            raise CheckpointError(
                f'"{name}" has shape {list(weights.shape(name))}; config.json promises {list(shape)}'
            )
    extra = [name for name in weights.names if name not in expected and not name.endswith(UNREAD)]
    if a.tied and HEAD in extra:
        extra.remove(HEAD)
        if not _equal(weights, HEAD, EMBEDDING):
            raise ExportError(
                f'"{HEAD}" differs from the embedding, but config.json ties them: '
                "set tie_word_embeddings to false"
            )
    if extra:
        raise ExportError(f"{a.name} has no place for {_few(extra)}: the graph would leave it out")


def _expected(a: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the architecture."""
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (a.vocabulary, a.hidden),
        "model.norm.weight": (a.hidden,),
    }
    if not a.tied:
        shapes[HEAD] = (a.vocabulary, a.hidden)
    for layer in range(a.layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (a.hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (a.hidden,)
        if a.qk_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (a.head_dim,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (a.head_dim,)
        for module, rows, columns, with_bias in (
            ("self_attn.q_proj", queries, a.hidden, a.qkv_bias),
            ("self_attn.k_proj", keys, a.hidden, a.qkv_bias),
            ("self_attn.v_proj", keys, a.hidden, a.qkv_bias),
            ("self_attn.o_proj", a.hidden, queries, a.output_bias),
            ("mlp.gate_proj", a.intermediate, a.hidden, a.mlp_bias),
            ("mlp.up_proj", a.intermediate, a.hidden, a.mlp_bias),
            ("mlp.down_proj", a.hidden, a.intermediate, a.mlp_bias),
        ):
            shapes[f"{prefix}.{module}.weight"] = (rows, columns)
            if with_bias:
                shapes[f"{prefix}.{module}.bias"] = (rows,)
    return shapes


def _equal(weights: Checkpoint, one: str, other: str) -> bool:
    """Whether two matrices hold the same values, compared a few rows at a time."""
    if weights.shape(one) != weights.shape(other):
        return False
    pairs = zip(
        float_rows(weights, one, FLOAT_TYPES["fp32"]),
        float_rows(weights, other, FLOAT_TYPES["fp32"]),
        strict=True,
    )
    return all(np.array_equal(left, right) for left, right in pairs)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
