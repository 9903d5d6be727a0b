"""A decoder's shape, read from config.json; what the graph cannot express is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.rope import Rope, read_rope
from runtime.errors import CheckpointError, ExportError

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
OTHERWISE = 'exporter = "optimum" may export it'


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer of the Llama family.

    Layers of pre-normalized (RMSNorm) grouped-query attention with rotary positions and a SiLU-gated
    MLP. `hidden` need not be `heads * head_dim`.
    """

    name: str
    """As in config.json's `architectures`."""
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_positions: int
    """Longest context in tokens."""
    norm_epsilon: float
    rope: Rope
    windows: tuple[int | None, ...]
    """Per layer: how many tokens, itself included, a token attends to; None: all before it."""
    tied: bool
    """The head is the embedding matrix."""
    qkv_bias: bool
    output_bias: bool
    """On the projection behind attention."""
    mlp_bias: bool
    qk_norm: bool
    """RMSNorm on each head of the queries and keys, before rotation."""


def read_config(checkpoint: Path) -> dict[str, object]:
    """config.json as it is.

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """
    path = checkpoint / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint} has no config.json: it is no Hugging Face checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return config


def read_architecture(checkpoint: Path) -> Architecture:
    """Read and check config.json, in the layout of transformers 4 or 5.

    Raises:
        CheckpointError: config.json is missing or unreadable.
        ExportError: the architecture, or a value of it, cannot be expressed.
    """
    config = read_config(checkpoint)
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in SUPPORTED:
        raise ExportError(
            f'the architecture "{name}" is not supported; supported: {", ".join(SUPPORTED)}; {OTHERWISE}'
        )
    if config.get("quantization_config") is not None:
        raise ExportError("the checkpoint is quantized already; export needs its float weights")
    if config.get("hidden_act", "silu") != "silu":
        raise ExportError(
            f'hidden_act "{config["hidden_act"]}" is not supported; supported: silu; {OTHERWISE}'
        )
    layers, heads = _count(config, "num_hidden_layers"), _count(config, "num_attention_heads")
    hidden = _count(config, "hidden_size")
    absent = config.get("num_key_value_heads") is None and name == "LlamaForCausalLM"
    kv_heads = heads if absent else _count(config, "num_key_value_heads")
    if heads % kv_heads:
        raise ExportError(
            f"config.json: {heads} attention heads cannot share {kv_heads} key-value heads evenly"
        )
    head_dim = hidden // heads if config.get("head_dim") is None else _count(config, "head_dim")
    if head_dim % 16:
        raise ExportError(f"head_dim = {head_dim} is not supported; it must be a multiple of 16")
    attention_bias, mlp_bias = _flag(config, "attention_bias"), _flag(config, "mlp_bias")
    return Architecture(
        name=str(name),
        layers=layers,
        hidden=hidden,
        intermediate=_count(config, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=_count(config, "vocab_size"),
        max_positions=_count(config, "max_position_embeddings"),
        norm_epsilon=_epsilon(config),
        rope=read_rope(config, head_dim),
        windows=_windows(config, str(name), layers),
        tied=_flag(config, "tie_word_embeddings"),
        qkv_bias=name == "Qwen2ForCausalLM" or (attention_bias and name != "MistralForCausalLM"),
        output_bias=attention_bias and name in ("LlamaForCausalLM", "Qwen3ForCausalLM"),
        mlp_bias=mlp_bias and name == "LlamaForCausalLM",
        qk_norm=name == "Qwen3ForCausalLM",
    )


def _windows(config: Mapping[str, object], name: str, layers: int) -> tuple[int | None, ...]:
    """Sliding windows as each family's reference implementation applies them."""
    if name == "LlamaForCausalLM" or config.get("sliding_window") is None:
        return (None,) * layers
    window = _count(config, "sliding_window")
    if name == "MistralForCausalLM":
        return (window,) * layers
    if not _flag(config, "use_sliding_window"):
        return (None,) * layers
    kinds = config.get("layer_types")
    if kinds is None:
        first = _count(config, "max_window_layers", minimum=0)
        return tuple(window if layer >= first else None for layer in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ExportError(f"config.json: layer_types must name a type for each of {layers} layers")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise ExportError(
                f'layer type "{kind}" is not supported; supported: full_attention, sliding_attention'
            )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _count(config: Mapping[str, object], key: str, minimum: int = 1) -> int:
    value = config.get(key)
    if type(value) is not int or value < minimum:
        raise ExportError(f"config.json: {key} must be a whole number from {minimum} up, not {value!r}")
    return value


def _flag(config: Mapping[str, object], key: str) -> bool:
    value = config.get(key, False)
    if type(value) is not bool:
        raise ExportError(f"config.json: {key} must be true or false, not {value!r}")
    return value


def _epsilon(config: Mapping[str, object]) -> float:
    value = config.get("rms_norm_eps", 1e-6)
    if not isinstance(value, float) or not 0 < value < 1:
        raise ExportError(f"config.json: rms_norm_eps must be a small positive number, not {value!r}")
    return value
