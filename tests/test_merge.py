"""The merge: W0 + s·BA, exact to the rounding, and proved on the written file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from export.weights import Checkpoint
from pipeline.merge import merge
from pipeline.merging.shard import Shard
from pipeline.quiet import quiet_transformers
from runtime.errors import AdapterError, CheckpointError

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.tensor([[1, 5, 9, 2, 40, 33, 7]])


def silent(message: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def make_base(
    folder: Path, *, dtype: torch.dtype = torch.float32, tied: bool = True, shard: str = "5GB"
) -> Path:
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
            initializer_range=0.2,
        )
    )
    with quiet_transformers():
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def make_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """A PEFT adapter whose factors are all random, B too."""
    torch.manual_seed(2)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        values = {"r": 4, "lora_alpha": 8, "target_modules": SEVEN, **settings}
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **values))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def merged(base: Path, adapter: Path, out: Path) -> dict[str, Any]:
    out.mkdir()
    return merge(base, adapter, out, silent)


def logits(checkpoint: Path, adapter: Path | None = None) -> torch.Tensor:
    with quiet_transformers(), torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
        return model(IDS).logits


def test_the_guide_s_worked_example(tmp_path: Path) -> None:
    """W0 = [[1, 2], [3, 4]], A = [[0.1, 0.2]], B = [[0.5], [0.6]], x = [[1], [2]], s = 1."""
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    for folder in (base, adapter):
        folder.mkdir()
    w0 = np.array([[1, 2], [3, 4]], np.float32)
    a, b = np.array([[0.1, 0.2]], np.float32), np.array([[0.5], [0.6]], np.float32)
    save_file({"layer.weight": w0}, base / "model.safetensors")
    factors = {"base_model.model.layer.lora_A.weight": a, "base_model.model.layer.lora_B.weight": b}
    save_file(factors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["layer"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    merged(base, adapter, out)
    w = load_file(out / "model.safetensors")["layer.weight"]
    x = np.array([[1], [2]], np.float32)
    np.testing.assert_allclose(w @ x, [[5.25], [11.3]], rtol=1e-6)
    np.testing.assert_allclose((w - w0) @ x, [[0.25], [0.3]], rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {
            "rank_pattern": {"q_proj": 2, r"layers\.2\.mlp\.up_proj": 7},
            "alpha_pattern": {r"layers\.1\..*": 3, "down_proj": 20},
        },
        {"use_rslora": True, "rank_pattern": {"v_proj": 1}, "alpha_pattern": {"v_proj": 5}},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": r".*\.[02]\.self_attn\.(k|o)_proj"},
        {"layers_to_transform": [0, 2]},
        {"layers_to_transform": 1, "layers_pattern": "layers"},
        {"exclude_modules": ["up_proj"]},
        {"target_modules": "all-linear"},
    ],
    ids=["plain", "rslora", "patterns", "both", "subset", "regex", "layers", "pattern", "exclude", "all"],
)
def test_the_merged_model_is_the_unmerged_one(tmp_path: Path, settings: Mapping[str, Any]) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    figures = merged(base, adapter, tmp_path / "out")
    wanted = logits(base, adapter)
    assert (wanted - logits(base)).abs().max() > 0.1
    error = (logits(tmp_path / "out") - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-5
    assert figures["merged_tensors"] + figures["copied_tensors"] == len(Checkpoint(base).names)
    assert 0 < figures["max_error"] <= 1
    assert all(0.01 < share < 10 for share in figures["relative_update"].values())


@pytest.mark.parametrize(
    ("dtype", "kind"), [(torch.bfloat16, ml_dtypes.bfloat16), (torch.float16, np.float16)]
)
def test_a_half_precision_base_is_rounded_once(tmp_path: Path, dtype: torch.dtype, kind: type) -> None:
    base = make_base(tmp_path / "base", dtype=dtype)
    adapter = make_adapter(base, tmp_path / "adapter")
    merged(base, adapter, tmp_path / "out")
    was, now = Checkpoint(base), Checkpoint(tmp_path / "out")
    factors = load_file(adapter / "adapter_model.safetensors")
    seen = 0
    for name in was.names:
        assert now.dtype(name) == np.dtype(kind)
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{key}A.weight" in factors:
            update = 2 * (factors[f"{key}B.weight"] @ factors[f"{key}A.weight"])
            np.testing.assert_array_equal(now.read(name), (was.read_float32(name) + update).astype(kind))
            seen += 1
        else:
            np.testing.assert_array_equal(now.read(name), was.read(name))
    assert seen == 21


def test_shards_stay_shards_and_everything_else_comes_along(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", shard="100KB", tied=False)
    (base / "pytorch_model.bin").write_bytes(b"never copied")
    adapter = make_adapter(base, tmp_path / "adapter")
    merged(base, adapter, tmp_path / "out")
    out = tmp_path / "out"
    names = {path.name for path in base.iterdir()} - {"pytorch_model.bin"}
    assert {path.name for path in out.iterdir()} == names
    assert len([name for name in names if name.endswith(".safetensors")]) > 2
    index = "model.safetensors.index.json"
    was, now = (json.loads((folder / index).read_text()) for folder in (base, out))
    assert now["weight_map"] == was["weight_map"]
    assert now["metadata"]["total_size"] == was["metadata"]["total_size"]
    torch.testing.assert_close(logits(out), logits(base, adapter), rtol=1e-5, atol=1e-4)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    merged(base, make_adapter(base, tmp_path / "adapter"), tmp_path / "out")
    assert "lm_head.weight" not in Checkpoint(tmp_path / "out").names
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


# PEFT warns of just what is tested here.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_an_update_of_the_head_unties_it(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    merged(base, adapter, tmp_path / "out")
    was, now = Checkpoint(base), Checkpoint(tmp_path / "out")
    embedding = "model.embed_tokens.weight"
    np.testing.assert_array_equal(now.read(embedding), was.read(embedding))
    assert np.abs(now.read("lm_head.weight") - was.read(embedding)).max() > 0.1
    torch.testing.assert_close(logits(tmp_path / "out"), logits(base, adapter), rtol=1e-5, atol=1e-4)


def test_inputs_are_not_changed(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    files = [*base.iterdir(), *adapter.iterdir()]
    was = [path.read_bytes() for path in files]
    merged(base, adapter, tmp_path / "out")
    assert [path.read_bytes() for path in files] == was


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            "model.layers.1.mlp.up_proj.weight",
            r'1.mlp.up_proj.weight" is not what the adapter makes of W0 at \[3, 5\]',
        ),
        ("model.norm.weight", '"model.norm.weight" has no update but differs from the base'),
    ],
)
def test_a_wrong_element_in_the_written_file_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor: str, message: str
) -> None:
    write = Shard.write

    def faulty(self: Shard, name: str, start: int, values: Any) -> None:
        if name == tensor:
            at = (3, 5) if values.ndim == 2 else (3,)
            values = values.copy()
            values[at] = np.nextafter(np.nextafter(values[at], np.float32(9)), np.float32(9))
        write(self, name, start, values)

    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter", lora_alpha=1e-3)
    monkeypatch.setattr(Shard, "write", faulty)
    with pytest.raises(AdapterError, match=message):
        merged(base, adapter, tmp_path / "out")


def test_a_sum_beyond_the_type_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype=torch.float16)
    adapter = make_adapter(base, tmp_path / "adapter", lora_alpha=1e7)
    with pytest.raises(AdapterError, match=r'"model.layers.0.* is beyond what float16 can hold'):
        merged(base, adapter, tmp_path / "out")


def test_nan_in_the_base_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][1, 1] = np.nan
    save_file(tensors, base / "model.safetensors")
    adapter = make_adapter(make_base(tmp_path / "good"), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"q_proj.weight.* NaN"):
        merged(base, adapter, tmp_path / "out")


def test_integer_weights_cannot_take_an_update(tmp_path: Path) -> None:
    base, adapter = make_base(tmp_path / "base"), tmp_path / "adapter"
    make_adapter(base, adapter, target_modules=["q_proj"])
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.2.self_attn.q_proj.weight"
    save_file({**tensors, name: tensors[name].astype(np.int8)}, base / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf'"{name}" is int8; an update can be added to float32'):
        merged(base, adapter, tmp_path / "out")


def test_a_copy_of_the_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    shutil.copytree(adapter, tmp_path / "copy")
    merged(base, adapter, tmp_path / "one")
    merged(base, tmp_path / "copy", tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
