"""Checkpoints of known shapes with random weights: what a tool costs does not depend on the values."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from export.weights import SafetensorsWriter

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

_LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
}
_QWEN: Mapping[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
}


def _shape(
    family: Mapping[str, Any], hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int
) -> Mapping[str, Any]:
    return {
        **family,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


SHAPES = {
    "SmolLM2-135M": _shape(_LLAMA, 576, 30, 9, 3, 1536),
    "SmolLM2-360M": _shape(_LLAMA, 960, 32, 15, 5, 2560),
    "Qwen2.5-0.5B": _shape(_QWEN, 896, 24, 14, 2, 4864),
    "SmolLM2-1.7B": _shape(_LLAMA, 2048, 24, 32, 32, 8192),
}
"""config.json of the published models, as far as it shapes a graph."""


def make(name: str, tokenizer: Path, out: Path) -> None:
    """Write a bfloat16 checkpoint of `SHAPES[name]`.

    Args:
        name: a key of `SHAPES`.
        tokenizer: a Hugging Face folder whose tokenizer has no more tokens than the shape's vocabulary.
        out: the folder to make.
    """
    config = AutoConfig.for_model(**SHAPES[name])
    build: Any = AutoModelForCausalLM.from_config  # untyped in transformers
    with torch.device("meta"):
        state = build(config).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items() if key != "lm_head.weight"}  # tied
    out.mkdir(parents=True)
    config.save_pretrained(out)
    for file in TOKENIZER:
        shutil.copyfile(tokenizer / file, out / file)
    values = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(BFLOAT16)
    declared = {key: (BFLOAT16, shape) for key, shape in shapes.items()}
    with SafetensorsWriter(out / "model.safetensors", declared, {"format": "pt"}) as writer:
        for key, shape in shapes.items():
            writer.append(key, np.resize(values, shape))
