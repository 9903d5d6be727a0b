"""config.json → Architecture: what is read, in both layouts, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from export.architecture import read_architecture
from export.rope import tables
from runtime.errors import CheckpointError, ExportError

LLAMA: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "vocab_size": 99,
}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_llama(folder: Path) -> None:
    a = read_architecture(write(folder, LLAMA))
    assert (a.name, a.layers, a.hidden, a.intermediate) == ("LlamaForCausalLM", 3, 64, 96)
    assert (a.heads, a.kv_heads, a.head_dim, a.vocabulary, a.max_positions) == (4, 2, 16, 99, 8192)
    assert (a.norm_epsilon, a.tied, a.windows) == (1e-5, True, (None, None, None))
    assert (a.qkv_bias, a.output_bias, a.mlp_bias, a.qk_norm) == (False, False, False, False)
    assert len(a.rope.inverse_frequencies) == 8
    assert a.rope.attention_factor == 1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA | {"attention_bias": True}, (True, True, False, False)),
        (LLAMA | {"mlp_bias": True}, (False, False, True, False)),
        (QWEN2, (True, False, False, False)),
        (QWEN3, (False, False, False, True)),
        (QWEN3 | {"attention_bias": True}, (True, True, False, True)),
        (MISTRAL, (False, False, False, False)),
    ],
)
def test_biases_and_norms(folder: Path, config: object, expected: tuple[bool, ...]) -> None:
    a = read_architecture(write(folder, config))
    assert (a.qkv_bias, a.output_bias, a.mlp_bias, a.qk_norm) == expected


def test_old_llama_configs_leave_things_out(folder: Path) -> None:
    config = {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "rope_theta", "mlp_bias")}
    a = read_architecture(write(folder, config))
    assert a.kv_heads == 4
    assert a.rope == read_architecture(write(folder, LLAMA)).rope


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (MISTRAL | {"sliding_window": None}, (None, None, None)),
        (MISTRAL | {"sliding_window": 7}, (7, 7, 7)),
        (LLAMA | {"sliding_window": 7}, (None, None, None)),
        (QWEN2 | {"sliding_window": 7, "use_sliding_window": False}, (None, None, None)),
        (QWEN2 | {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1}, (None, 7, 7)),
        (
            QWEN3
            | {
                "sliding_window": 7,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (7, None, 7),
        ),
    ],
)
def test_sliding_windows(folder: Path, config: object, windows: tuple[int | None, ...]) -> None:
    assert read_architecture(write(folder, config)).windows == windows


SCALINGS: list[dict[str, object]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 3.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "attention_factor": 0.8},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "truncate": False},
    {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 512,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
]


@pytest.mark.parametrize("layout", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_rope_tables_are_those_of_transformers(folder: Path, scaling: dict[str, object], layout: str) -> None:
    """To a few float32 roundings of the angle at the last of 8,192 positions."""
    theta = {"rope_theta": 500_000.0}
    if layout == "rope_parameters":
        config = {k: v for k, v in LLAMA.items() if k != "rope_theta"} | {layout: scaling | theta}
    else:
        config = LLAMA | theta | {layout: scaling}
    write(folder, config)
    reference = AutoConfig.from_pretrained(folder)
    assert isinstance(reference, LlamaConfig)
    positions = torch.arange(8192)[None]
    cos, sin = LlamaRotaryEmbedding(reference)(torch.zeros(1), positions)
    ours = tables(read_architecture(folder).rope, 8192)
    for table, expected in zip(ours, (cos, sin), strict=True):
        assert table.dtype == np.float32
        np.testing.assert_allclose(table, expected[0, :, :8].numpy(), atol=1e-3)
        np.testing.assert_allclose(table[:64], expected[0, :64, :8].numpy(), atol=1e-5)


def test_the_old_name_of_a_rope_type(folder: Path) -> None:
    old = read_architecture(write(folder, LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}}))
    new = read_architecture(write(folder, LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}))
    assert old.rope == new.rope


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, 'architecture "GPT2LMHeadModel" is not supported'),
        ({"architectures": []}, 'architecture "None" is not supported; supported: LlamaForCausalLM'),
        ({"architectures": "LlamaForCausalLM"}, 'exporter = "optimum" may export it'),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized already"),
        ({"hidden_act": "gelu"}, 'hidden_act "gelu" is not supported; supported: silu'),
        ({"hidden_size": "64"}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number from 1 up, not 0"),
        ({"vocab_size": None}, "vocab_size must be"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key-value heads"),
        ({"head_dim": 24}, "head_dim = 24 is not supported"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be"),
        ({"rope_theta": -1.0}, "RoPE rope_theta must be a positive number, not -1.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 'RoPE type "dynamic" is not supported'),
        ({"rope_scaling": {"type": "longrope"}}, 'RoPE type "longrope" is not supported; supported: default'),
        ({"rope_scaling": {"rope_type": "linear"}}, "RoPE factor must be a positive number, not None"),
        ({"rope_scaling": SCALINGS[2] | {"high_freq_factor": 1.0}}, "high_freq_factor must be larger"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differ between layers"),
        ({"rope_parameters": "yarn"}, "rope_parameters is not an object"),
    ],
)
def test_refusals(folder: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(ExportError) as caught:
        read_architecture(write(folder, LLAMA | change))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (["full_attention"], "layer_types must name a type for each of 3 layers"),
        (["full_attention", "chunked_attention", "full_attention"], 'layer type "chunked_attention"'),
    ],
)
def test_refuses_layer_types(folder: Path, kinds: list[str], words: str) -> None:
    config = QWEN3 | {"sliding_window": 7, "use_sliding_window": True, "layer_types": kinds}
    with pytest.raises(ExportError) as caught:
        read_architecture(write(folder, config))
    assert words in str(caught.value)


def test_other_families_must_state_key_value_heads(folder: Path) -> None:
    config = {k: v for k, v in QWEN2.items() if k != "num_key_value_heads"}
    with pytest.raises(ExportError, match="num_key_value_heads must be"):
        read_architecture(write(folder, config))


@pytest.mark.parametrize(
    ("raw", "words"), [(None, "has no config.json"), ("{", "cannot read"), ("[]", "not a JSON object")]
)
def test_refuses_a_folder_without_config(folder: Path, raw: str | None, words: str) -> None:
    if raw is not None:
        (folder / "config.json").write_text(raw)
    with pytest.raises(CheckpointError, match=words):
        read_architecture(folder)
