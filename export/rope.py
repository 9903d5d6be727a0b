"""Rotary position embedding: the cos and sin tables of a config's RoPE scaling.

Frequencies are computed in float32 with the operations of the reference implementation, because a
rounding of one part in 10^7 there grows with the position: at 8,192 it is already an angle of 10^-3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ExportError

SUPPORTED = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """The rotation of one head: angle = position * inverse frequency."""

    inverse_frequencies: tuple[float, ...]
    """Radians per position, [head_dim / 2]; each is exactly a float32."""
    attention_factor: float
    """Scales cos and sin alike, and so the attention logits by its square (YaRN)."""


def read_rope(config: Mapping[str, object], head_dim: int) -> Rope:
    """The RoPE of a config.json, in its layout of transformers 5 (`rope_parameters`) or before.

    Raises:
        ExportError: a scaling type that a fixed table cannot express, or a field is missing or wrong.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise ExportError("config.json: rope_parameters is not an object")
    if any(isinstance(value, Mapping) for value in scaling.values()):
        raise ExportError("config.json: rope_parameters differ between layers; one RoPE for all is supported")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in SUPPORTED:
        raise ExportError(
            f'RoPE type "{kind}" is not supported; supported: {", ".join(SUPPORTED)}; '
            'exporter = "optimum" may export it'
        )
    share = scaling.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if share not in (None, 1, 1.0):
        raise ExportError(f"partial_rotary_factor = {share} is not supported; every head must rotate whole")
    theta = _number(scaling, "rope_theta", config.get("rope_theta", 10_000.0))
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.power(theta, exponents.astype(np.float64)).astype(np.float32)
    inverse = np.float32(1) / frequencies
    attention_factor = 1.0
    if kind == "linear":
        inverse = inverse / np.float32(_number(scaling, "factor"))
    elif kind == "llama3":
        inverse = _llama3(inverse, scaling, config)
    elif kind == "yarn":
        inverse = _yarn(frequencies, theta, head_dim, scaling, config)
        attention_factor = _yarn_attention_factor(scaling, config)
    return Rope(tuple(inverse.tolist()), attention_factor)


def tables(rope: Rope, context: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cos and sin at every position, each [context, head_dim / 2]."""
    positions = np.arange(context, dtype=np.float32)
    angles = positions[:, None] * np.array(rope.inverse_frequencies, np.float32)
    factor = np.float32(rope.attention_factor)
    return np.cos(angles) * factor, np.sin(angles) * factor


def _llama3(
    inverse: NDArray[np.float32], scaling: Mapping[str, object], config: Mapping[str, object]
) -> NDArray[np.float32]:
    """Llama 3.1's scaling: long waves slowed by `factor`, short ones kept, a ramp between."""
    factor = np.float32(_number(scaling, "factor"))
    low = _number(scaling, "low_freq_factor")
    high = _number(scaling, "high_freq_factor")
    trained = _trained_context(scaling, config)
    if high <= low:
        raise ExportError("config.json: RoPE high_freq_factor must be larger than low_freq_factor")
    wavelength = np.float32(2 * math.pi) / inverse
    smooth = (np.float32(trained) / wavelength - np.float32(low)) / np.float32(high - low)
    ramp = (1 - smooth) * inverse / factor + smooth * inverse
    scaled = np.where(wavelength > trained / low, inverse / factor, inverse)
    between = (wavelength >= trained / high) & (wavelength <= trained / low)
    return np.asarray(np.where(between, ramp, scaled), np.float32)


def _yarn(
    frequencies: NDArray[np.float32],
    theta: float,
    head_dim: int,
    scaling: Mapping[str, object],
    config: Mapping[str, object],
) -> NDArray[np.float32]:
    """YaRN's "NTK by parts" (arXiv 2309.00071, section 3.2)."""
    trained = _trained_context(scaling, config)

    def dimension(rotations: float) -> float:
        """The dimension that turns so often within the trained context."""
        return head_dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(_number(scaling, "beta_fast", 32.0))
    high = dimension(_number(scaling, "beta_slow", 1.0))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    steps = np.arange(head_dim // 2, dtype=np.float32)
    keep = 1 - np.clip((steps - np.float32(low)) / np.float32(high - low), 0, 1)
    factor = np.float32(_yarn_factor(scaling, config))
    extrapolated = np.float32(1) / frequencies
    interpolated = np.float32(1) / (factor * frequencies)
    return np.asarray(interpolated * (1 - keep) + extrapolated * keep, np.float32)


def _yarn_attention_factor(scaling: Mapping[str, object], config: Mapping[str, object]) -> float:
    """The stated factor, or 0.1 ln(s) + 1 (arXiv 2309.00071, section 3.4), with DeepSeek's mscale."""
    if scaling.get("attention_factor") is not None:
        return _number(scaling, "attention_factor")
    factor = _yarn_factor(scaling, config)
    if factor <= 1:
        return 1.0
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        above = 0.1 * _number(scaling, "mscale") * math.log(factor) + 1
        return above / (0.1 * _number(scaling, "mscale_all_dim") * math.log(factor) + 1)
    return 0.1 * math.log(factor) + 1


def _yarn_factor(scaling: Mapping[str, object], config: Mapping[str, object]) -> float:
    if scaling.get("factor") is None:
        return _number(config, "max_position_embeddings") / _trained_context(scaling, config)
    return _number(scaling, "factor")


def _trained_context(scaling: Mapping[str, object], config: Mapping[str, object]) -> float:
    """Context before scaling; a value beside the scaling's own wins, as in the reference."""
    if config.get("original_max_position_embeddings") is not None:
        return _number(config, "original_max_position_embeddings")
    fallback = config.get("max_position_embeddings")
    return _number(scaling, "original_max_position_embeddings", fallback)


def _number(table: Mapping[str, object], key: str, fallback: object = None) -> float:
    value = table.get(key)
    if value is None:
        value = fallback
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ExportError(f"config.json: RoPE {key} must be a positive number, not {value!r}")
    return float(value)
