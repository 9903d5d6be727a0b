"""Adapters: what is understood, and what is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from export.weights import Checkpoint
from pipeline.adapter import parts, read_adapter
from pipeline.adapter_config import AdapterConfig
from pipeline.fingerprint import FINGERPRINT, fingerprint
from runtime.errors import AdapterError

LAYERS = {
    "model.layers.0.self_attn.q_proj": (6, 4),
    "model.layers.0.mlp.up_proj": (8, 4),
    "model.layers.1.self_attn.q_proj": (6, 4),
    "model.layers.1.mlp.up_proj": (8, 4),
}
SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"]}

Tensors = dict[str, np.ndarray]


def write_base(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {
        f"{layer}.weight": rng.normal(size=shape).astype(np.float32) for layer, shape in LAYERS.items()
    }
    tensors["model.norm.weight"] = np.ones(4, np.float32)
    save_file(tensors, folder / "model.safetensors")
    return folder


def factors() -> Tensors:
    rng = np.random.default_rng(1)
    found: Tensors = {}
    for layer, (out, into) in LAYERS.items():
        found[f"base_model.model.{layer}.lora_A.weight"] = rng.normal(size=(2, into)).astype(np.float32)
        found[f"base_model.model.{layer}.lora_B.weight"] = rng.normal(size=(out, 2)).astype(np.float32)
    return found


def write_adapter(folder: Path, tensors: Tensors | None = None, **settings: Any) -> Path:
    folder.mkdir()
    save_file(factors() if tensors is None else tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(AdapterError) as refused:
        read_adapter(folder)
    return str(refused.value)


def misfit(adapter: Path, base: Path) -> str:
    with pytest.raises(AdapterError) as refused:
        parts(read_adapter(adapter), Checkpoint(base))
    return str(refused.value)


def test_every_pair_becomes_an_update(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    found = parts(read_adapter(adapter), Checkpoint(base))
    assert list(found.updates) == sorted(f"{layer}.weight" for layer in LAYERS)
    assert {update.factors.scale for update in found.updates.values()} == {2.0}
    assert not found.replaced


@pytest.mark.parametrize(
    ("settings", "layer", "rank", "scale"),
    [
        ({}, "model.layers.0.mlp.up_proj", 2, 2.0),
        ({"use_rslora": True}, "model.layers.0.mlp.up_proj", 2, 4 / math.sqrt(2)),
        ({"rank_pattern": {"up_proj": 8}}, "model.layers.0.mlp.up_proj", 8, 0.5),
        ({"rank_pattern": {"p_proj": 8}}, "model.layers.0.mlp.up_proj", 2, 2.0),
        ({"rank_pattern": {"mlp.up_proj": 8, "up_proj": 1}}, "model.layers.0.mlp.up_proj", 8, 0.5),
        ({"rank_pattern": {r"layers\.1\..*": 8}}, "model.layers.0.mlp.up_proj", 2, 2.0),
        ({"rank_pattern": {r"layers\.1\..*": 8}}, "model.layers.1.mlp.up_proj", 8, 0.5),
        ({"alpha_pattern": {"up_proj": 1.5}}, "model.layers.0.mlp.up_proj", 2, 0.75),
        ({"alpha_pattern": {"up": 1.5}}, "model.layers.0.mlp.up_proj", 2, 2.0),
    ],
)
def test_rank_and_scale_follow_peft_s_patterns(
    settings: dict[str, Any], layer: str, rank: int, scale: float
) -> None:
    config = AdapterConfig.model_validate(SETTINGS | settings)
    assert config.rank(layer) == rank
    assert config.scale(layer) == pytest.approx(scale)


@pytest.mark.parametrize(
    ("settings", "targeted"),
    [
        ({}, {0, 1, 2, 3}),
        ({"target_modules": ["self_attn.q_proj"]}, {0, 2}),
        ({"target_modules": ["model.layers.1.mlp.up_proj"]}, {3}),
        ({"target_modules": ["roj"]}, set()),
        ({"target_modules": r".*\.1\..*"}, {2, 3}),
        ({"exclude_modules": ["q_proj"]}, {1, 3}),
        ({"exclude_modules": r".*\.0\..*"}, {2, 3}),
        ({"layers_to_transform": [1]}, {2, 3}),
        ({"layers_to_transform": 0, "layers_pattern": ["layers"]}, {0, 1}),
        ({"layers_to_transform": [0], "layers_pattern": "blocks"}, set()),
        ({"layers_to_transform": []}, {0, 1, 2, 3}),
    ],
)
def test_targets_follow_peft_s_rules(settings: dict[str, Any], targeted: set[int]) -> None:
    config = AdapterConfig.model_validate(SETTINGS | settings)
    assert {index for index, layer in enumerate(LAYERS) if config.targets(layer)} == targeted


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"trainable_token_indices": [1]}, '"trainable_token_indices": [1] changes'),
        ({"target_parameters": ["w"]}, '"target_parameters"'),
        ({"layer_replication": [[0, 2]]}, '"layer_replication"'),
        ({"alora_invocation_tokens": [5]}, '"alora_invocation_tokens"'),
        ({"megatron_config": {"a": 1}}, '"megatron_config"'),
        ({"loftq_config": {"loftq_bits": 4}}, '"loftq_config"'),
        ({"a_field_of_tomorrow": 0.5}, '"a_field_of_tomorrow": 0.5 changes'),
        ({"bias": "some"}, '"bias": "some"'),
        ({"use_dora": True, "lora_bias": True}, '"lora_bias": DoRA has no such thing'),
        ({"peft_type": "ADALORA", "use_dora": True}, '"use_dora": AdaLoRA has no such thing'),
        ({"peft_type": "ADALORA", "rank_pattern": {"q": 2}}, '"rank_pattern": with ADALORA'),
        ({"rank_pattern": {"q": [True]}}, '"rank_pattern": with LORA'),
        ({"init_lora_weights": "pissa"}, '"init_lora_weights": "pissa"'),
        ({"init_lora_weights": "olora"}, '"init_lora_weights": "olora"'),
        ({"peft_type": "IA3"}, '"peft_type": "IA3"'),
        ({"peft_type": "LOHA"}, '"peft_type": "LOHA"'),
        ({"peft_type": "VERA"}, '"peft_type": "VERA"'),
        ({"lora_alpha": -4}, '"lora_alpha": -4'),
        ({"r": 0}, '"r": 0'),
        ({"r": True}, '"r": true'),
        ({"lora_alpha": "16"}, '"lora_alpha": "16"'),
        ({"rank_pattern": {"q_proj": -1}}, '"rank_pattern"'),
        ({"rank_pattern": {"(": 4}}, '"(" is no regular expression'),
        ({"target_modules": None}, '"target_modules": null'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    assert named in refusal(write_adapter(tmp_path / "adapter", **settings))


def test_everything_that_is_not_understood_is_said_at_once(tmp_path: Path) -> None:
    message = refusal(write_adapter(tmp_path / "adapter", use_qalora=True, bias="some", lora_alpha=0))
    assert all(field in message for field in ('"use_qalora"', '"bias"', '"lora_alpha"'))


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": False, "modules_to_save": None, "loftq_config": {}, "layer_replication": None},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1, "task_type": "CAUSAL_LM"},
        {"megatron_core": "megatron.core", "qalora_group_size": 16, "peft_version": "0.21.2"},
        {"lora_alpha": 4.0, "inference_mode": True, "revision": "main"},
    ],
)
def test_what_is_switched_off_is_let_through(tmp_path: Path, settings: dict[str, Any]) -> None:
    read_adapter(write_adapter(tmp_path / "adapter", **settings))


def test_a_pickle_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "adapter_model.bin, a pickle that can run code" in refusal(folder)
    (folder / "adapter_model.bin").unlink()
    assert "has no adapter_model.safetensors" in refusal(folder)


def test_a_damaged_folder_is_one_sentence(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "fetch it again" in refusal(folder)
    (folder / "adapter_config.json").write_text("[")
    assert "cannot read" in refusal(folder)
    (folder / "adapter_config.json").write_text("[]")
    assert "is not a JSON object" in refusal(folder)
    (folder / "adapter_config.json").unlink()
    assert "is no adapter: it has no adapter_config.json" in refusal(folder)


def test_every_mismatch_is_listed_at_once(tmp_path: Path) -> None:
    tensors = factors()
    first, second, third, fourth = (f"base_model.model.{layer}.lora_" for layer in LAYERS)
    del tensors[f"{first}B.weight"]
    tensors[f"{second}A.weight"] = np.zeros((2, 5), np.float32)
    tensors[f"{third}B.weight"][1, 1] = np.inf
    tensors[f"{fourth}A.weight"] = np.zeros((2, 4), np.int32)
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = np.zeros((2, 4), np.float32)
    tensors["base_model.model.model.norm.lora_A.weight"] = np.zeros((2, 4), np.float32)
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = np.zeros((2, 4), np.float32)
    message = misfit(write_adapter(tmp_path / "adapter", tensors), write_base(tmp_path / "base"))
    assert '"model.layers.0.self_attn.q_proj" lacks lora_B' in message
    assert '"model.layers.0.mlp.up_proj" lora_A is [2, 5]; base and rank ask for [2, 4]' in message
    assert '"model.layers.1.self_attn.q_proj" lora_B has NaN or infinite values' in message
    assert '"model.layers.1.mlp.up_proj" lora_A is I32' in message
    assert '"model.layers.7.self_attn.q_proj" is not a layer of the base' in message
    assert '"model.norm" has factors, but target_modules does not name it' in message
    assert "lora_embedding_A" in message
    assert message.count("  - ") == 7


def test_a_targeted_layer_without_factors_is_noticed(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in factors().items() if ".1.mlp." not in name}
    message = misfit(write_adapter(tmp_path / "adapter", tensors), write_base(tmp_path / "base"))
    assert '"model.layers.1.mlp.up_proj" lacks lora_A and lora_B' in message


def test_an_adapter_for_no_layer_at_all_is_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", {}, target_modules=["query"])
    assert "target_modules names no layer of the base" in misfit(adapter, write_base(tmp_path / "base"))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    fingerprint(base).write(adapter / FINGERPRINT)
    assert parts(read_adapter(adapter), Checkpoint(base)).updates
    other = tmp_path / "other"
    other.mkdir()
    checkpoint = Checkpoint(base)
    tensors = {name: checkpoint.read(name) for name in checkpoint.names}
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, other / "model.safetensors")
    message = misfit(adapter, other)
    assert "trained on another base: 2 of 5 tensors differ" in message
    assert 'the first is "model.layers.1.mlp.up_proj.weight"' in message


def test_a_damaged_fingerprint_is_noticed(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / FINGERPRINT).write_text('{"digest": "0", "tensors": {}}')
    assert "is damaged" in refusal(adapter)
