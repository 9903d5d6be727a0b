"""The optimum exporter: what it refuses, and the second opinion on the graph of `export.graph`."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from export.architecture import read_architecture
from export.checkpoint import export_checkpoint
from export.optimum import export_with_optimum
from runtime.errors import ExportError

CONTEXT = 64
INSTALLED = importlib.util.find_spec("optimum") is not None
TOKENS = np.random.default_rng(5).integers(0, 300, 24)
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
SHARED = SHAPE | {"num_key_value_heads": 2}
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHARED, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHARED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHARED, head_dim=32, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHARED, sliding_window=None)),
}


def ignore(what: str, done: int, total: int) -> None:
    """No progress."""


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint to change."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def save(make: Callable[[], PreTrainedModel], folder: Path) -> PreTrainedModel:
    """Put a random model, its norms and biases random too, in place of the checkpoint's."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return model


def run(folder: Path, chunks: tuple[int, ...]) -> NDArray[np.float32]:
    """Logits after each chunk of TOKENS, [chunks, V], by whatever inputs the graph has."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = {value.name: value for value in session.get_inputs()}
    cache = {
        name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for name, value in inputs.items()
        if name.startswith("past")
    }
    names = ["logits", *(name.replace("past_key_values", "present") for name in cache)]
    found, at = [], 0
    for size in chunks:
        feed = {
            "input_ids": TOKENS[None, at : at + size],
            "attention_mask": np.ones((1, at + size), np.int64),
        }
        if "position_ids" in inputs:
            feed["position_ids"] = np.arange(at, at + size)[None]
        logits, *presents = session.run(names, feed | cache)
        cache = dict(zip(cache, presents, strict=True))
        at += size
        found.append(logits[0, -1])
    return np.stack(found)


def error(measured: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(measured - expected).max() / np.abs(expected).max())


needs_optimum = pytest.mark.skipif(not INSTALLED, reason="the optimum extra is not installed here")


@pytest.mark.optimum
@needs_optimum
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_both_exporters_agree(family: str, checkpoint: Path, tmp_path: Path) -> None:
    """Two graphs made in two ways from one checkpoint: the same logits, prefill and behind a cache."""
    save(FAMILIES[family], checkpoint)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    export_checkpoint(checkpoint, ours, "fp32", 32, CONTEXT, ignore)
    export_with_optimum(checkpoint, theirs, CONTEXT)
    for chunks in ((24,), (9, 1, 1, 13)):
        assert error(run(ours, chunks), run(theirs, chunks)) < 1e-5


@pytest.mark.optimum
@needs_optimum
@pytest.mark.filterwarnings("ignore")
def test_an_architecture_the_graph_does_not_know(checkpoint: Path, out: Path) -> None:
    model = save(lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)), checkpoint)
    with pytest.raises(ExportError, match='exporter = "optimum"'):
        read_architecture(checkpoint)
    record = export_with_optimum(checkpoint, out, CONTEXT)
    assert record["architecture"] == "gpt_neox"
    with torch.inference_mode():
        expected = model(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    ends = np.cumsum((9, 1, 1, 13)) - 1
    assert error(run(out, (9, 1, 1, 13)), expected[ends]) < 1e-5
    decoder = json.loads((out / "genai_config.json").read_text())["model"]["decoder"]
    assert (decoder["num_attention_heads"], decoder["head_size"]) == (4, 16)
    assert {file.name for file in out.iterdir()} >= {"model.onnx", "tokenizer.json", "chat_template.jinja"}
    assert not [file for file in out.iterdir() if file.is_dir()]


@pytest.mark.optimum
@needs_optimum
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_that_optimum_does_not_know(checkpoint: Path, out: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(ExportError, match="optimum cannot export"):
        export_with_optimum(checkpoint, out, CONTEXT)
    assert list(out.iterdir()) == []


@pytest.mark.skipif(INSTALLED, reason="the optimum extra is installed here")
def test_without_optimum_it_says_how_to_get_it(checkpoint: Path, out: Path) -> None:
    with pytest.raises(ExportError, match="pip install 'cockpit-edge"):
        export_with_optimum(checkpoint, out, CONTEXT)


@pytest.mark.parametrize(
    "key", ["auto_map", "custom_pipelines", "_attn_implementation", "_attn_implementation_internal"]
)
def test_refuses_a_config_that_names_code(checkpoint: Path, out: Path, key: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {key: "somewhere"}))
    with pytest.raises(ExportError, match=f"run code of its own .{key}"):
        export_with_optimum(checkpoint, out, CONTEXT)


def test_refuses_a_checkpoint_that_holds_code(checkpoint: Path, out: Path) -> None:
    (checkpoint / "modeling_mine.py").touch()
    with pytest.raises(ExportError, match=r"modeling_mine\.py"):
        export_with_optimum(checkpoint, out, CONTEXT)


def test_refuses_a_context_beyond_the_checkpoints(checkpoint: Path, out: Path) -> None:
    with pytest.raises(ExportError, match="a context of 513 tokens was asked for"):
        export_with_optimum(checkpoint, out, 513)


def test_refuses_to_write_over_something(checkpoint: Path, out: Path) -> None:
    (out / "note").touch()
    with pytest.raises(ExportError, match="is not empty"):
        export_with_optimum(checkpoint, out, CONTEXT)
