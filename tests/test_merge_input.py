"""Adapters that are damaged: every defect is listed at once, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.merge import merge
from runtime.errors import AdapterError
from tests.conformance import QKV, Base, Case, make_adapter, make_base

Tensors = dict[str, np.ndarray]
PREFIX = "base_model.model."
ATTENTION = f"{PREFIX}model.layers.0.self_attn"


def silent(message: str, done: int, total: int) -> None:
    pass


def damaged(tmp_path: Path, case: Case, change: Callable[[Tensors], object]) -> str:
    """What is said of an adapter whose tensors were changed."""
    base = make_base(case.base, tmp_path / "base")
    adapter, out = make_adapter(case, base, tmp_path / "adapter"), tmp_path / "out"
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    out.mkdir()
    with pytest.raises(AdapterError) as refused:
        merge(base, adapter, out, silent)
    assert not list(out.iterdir())
    return str(refused.value)


def test_extra_missing_and_transposed_tensors_are_listed_at_once(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        key = f"{ATTENTION}.k_proj.lora_A.weight"
        tensors[key] = np.ascontiguousarray(tensors[key].T)
        del tensors[f"{ATTENTION}.v_proj.lora_B.weight"]
        tensors[f"{ATTENTION}.q_proj.lora_magnitude_vector"] = np.ones(64, np.float32)
        tensors[f"{PREFIX}model.norm.weight"] = np.zeros(64, np.float32)
        tensors[f"{PREFIX}classifier.weight"] = np.zeros((2, 2), np.float32)
        tensors["stray"] = np.zeros(2, np.float32)
        del tensors[f"{PREFIX}lm_head.weight"]

    case = Case("", "", {"target_modules": QKV, "modules_to_save": ["lm_head"]})
    message = damaged(tmp_path, case, change)
    assert (
        '0.self_attn.k_proj" lora_A is [64, 4], which is transposed; base and rank ask for [4, 64]' in message
    )
    assert '0.self_attn.v_proj" lacks lora_B' in message
    assert '0.self_attn.q_proj" has lora_magnitude_vector, which its config does not ask for' in message
    assert '"model.norm.weight" is not the base\'s, and neither modules_to_save nor bias' in message
    assert '"classifier.weight" is no tensor of the base' in message
    assert '"stray" is no tensor of the base' in message
    assert '"lm_head.weight" is missing, which modules_to_save asks for' in message
    assert message.count("  - ") == 7


@pytest.mark.parametrize(
    ("case", "key", "named"),
    [
        (Case("", ""), f"{ATTENTION}.q_proj.lora_A.weight", 'q_proj" lora_A'),
        (
            Case("", "", {"use_dora": True}),
            f"{ATTENTION}.q_proj.lora_magnitude_vector",
            'q_proj" lora_magnitude_vector',
        ),
        (
            Case("", "", {"bias": "all"}, "qwen2"),
            f"{ATTENTION}.q_proj.base_layer.bias",
            'model.layers.0.self_attn.q_proj.bias"',
        ),
        (
            Case("", "", {"lora_bias": True, "target_modules": QKV}, "qwen2"),
            f"{ATTENTION}.q_proj.lora_B.bias",
            'q_proj" lora_B.bias',
        ),
        (Case("", "", {"modules_to_save": ["lm_head"]}), f"{PREFIX}lm_head.weight", '"lm_head.weight"'),
        (
            Case("", "", {"target_modules": ["embed_tokens"]}),
            f"{PREFIX}model.embed_tokens.lora_embedding_B",
            'embed_tokens" lora_embedding_B',
        ),
        (
            Case("", "", {"init_r": 3, "total_step": 10}, adalora=True),
            f"{ATTENTION}.q_proj.lora_E",
            'q_proj" lora_E',
        ),
    ],
    ids=["factor", "magnitude", "bias", "lora_bias", "module", "embedding", "singular value"],
)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_in_any_tensor_is_refused(case: Case, key: str, named: str, value: float, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors[key].reshape(-1)[-1] = value

    assert f"{named} has NaN or infinite values" in damaged(tmp_path, case, change)


@pytest.mark.parametrize(
    ("base", "settings", "key"),
    [
        ("qwen2", {"bias": "all"}, f"{ATTENTION}.k_proj.base_layer.bias"),
        ("llama", {"modules_to_save": ["mlp"]}, f"{PREFIX}model.layers.1.mlp.up_proj.weight"),
        ("llama", {"use_dora": True}, f"{ATTENTION}.k_proj.lora_magnitude_vector"),
    ],
)
def test_a_missing_bias_module_or_length_is_named(
    base: Base, settings: dict[str, object], key: str, tmp_path: Path
) -> None:
    case = Case("", "", settings, base)
    message = damaged(tmp_path, case, lambda tensors: tensors.pop(key))
    assert message.count("  - ") == 1
    assert "lacks lora_magnitude_vector" in message or "is missing, which" in message


@pytest.mark.parametrize(
    ("settings", "base", "key", "again"),
    [
        ({"use_dora": True}, "llama", "q_proj.lora_magnitude_vector", "q_proj.lora_magnitude_vector.weight"),
        ({"bias": "all"}, "qwen2", "q_proj.base_layer.bias", "q_proj.bias"),
    ],
)
def test_a_tensor_under_two_names_is_refused(
    settings: dict[str, object], base: Base, key: str, again: str, tmp_path: Path
) -> None:
    def change(tensors: Tensors) -> None:
        tensors[f"{ATTENTION}.{again}"] = 2 * tensors[f"{ATTENTION}.{key}"]

    message = damaged(tmp_path, Case("", "", settings, base), change)
    assert f"{ATTENTION}." in message
    assert "is no tensor of the base" in message


def test_a_module_of_another_shape_is_refused(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors[f"{PREFIX}lm_head.weight"] = np.ones((97, 64), np.float32)

    message = damaged(tmp_path, Case("", "", {"modules_to_save": ["lm_head"]}), change)
    assert '"lm_head.weight" is [97, 64]; the base has [96, 64]' in message


def test_a_module_that_is_not_there_is_refused(tmp_path: Path) -> None:
    case = Case("", "", written={"modules_to_save": ["score"]})
    assert "\"modules_to_save\": ['score'] names no layer" in damaged(tmp_path, case, lambda tensors: None)


def test_a_row_of_zeros_has_no_length(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(Case("", "", {"use_dora": True}), base, tmp_path / "adapter")
    name = "model.layers.0.self_attn.q_proj"
    for folder, key in ((base, f"{name}.weight"), (adapter, f"{PREFIX}{name}.lora_B.weight")):
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        tensors[key][3] = 0.0
        save_file(tensors, file, {"format": "pt"})
    with pytest.raises(AdapterError, match=f'"{name}.weight" has a row or column of zeros'):
        merge(base, adapter, tmp_path, silent)


def test_fan_in_fan_out_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    adapter = make_adapter(Case("", "", written={"fan_in_fan_out": True}), base, tmp_path / "adapter")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(AdapterError, match=r'"fan_in_fan_out" of .* how GPT2LMHeadModel lays out'):
        merge(base, adapter, tmp_path, silent)
