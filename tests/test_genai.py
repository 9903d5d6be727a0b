"""genai_config.json: it describes the graph beside it, and onnxruntime-genai agrees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.checkpoint import export_checkpoint
from export.genai import Decoder, write_genai_config
from export.graph import Precision
from export.tokenizer import SpecialTokens
from runtime.errors import ExportError

CONTEXT = 64
DECODER = Decoder(
    model_type="llama",
    context=CONTEXT,
    vocabulary=99,
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    shared_cache=True,
    position_ids=False,
)


def ignore(what: str, done: int, total: int) -> None:
    """No progress."""


def exported(checkpoint: Path, out: Path, precision: Precision) -> Path:
    out.mkdir()
    export_checkpoint(checkpoint, out, precision, 32, CONTEXT, ignore)
    return out


def test_it_describes_the_graph(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = exported(tiny_checkpoint, tmp_path / "out", "fp32")
    config = json.loads((out / "genai_config.json").read_text())
    model, decoder = config["model"], config["model"]["decoder"]
    session = onnxruntime.InferenceSession(out / decoder["filename"], providers=["CPUExecutionProvider"])
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name: value for value in session.get_outputs()}
    layers = range(decoder["num_hidden_layers"])
    names = decoder["inputs"]
    per_layer = [names[key] % i for i in layers for key in ("past_key_names", "past_value_names")]
    assert set(inputs) == {names["input_ids"], names["attention_mask"], *per_layer}
    names = decoder["outputs"]
    per_layer = [names[key] % i for i in layers for key in ("present_key_names", "present_value_names")]
    assert set(outputs) == {names["logits"], "hidden_states", *per_layer}
    _, heads, _, size = inputs["past_key_values.0.key"].shape
    assert (heads, size) == (decoder["num_key_value_heads"], decoder["head_size"])
    assert outputs["logits"].shape[-1] == model["vocab_size"]
    assert outputs["hidden_states"].shape[-1] == decoder["hidden_size"]
    assert (model["context_length"], model["type"]) == (CONTEXT, "llama")
    assert (model["eos_token_id"], model["bos_token_id"], model["pad_token_id"]) == ([2], 1, 2)
    assert config["search"]["past_present_share_buffer"] is True


def test_a_growing_cache_takes_positions(tmp_path: Path) -> None:
    decoder = replace(DECODER, shared_cache=False, position_ids=True)
    write_genai_config(decoder, SpecialTokens(None, (2, 3), 2), tmp_path)
    config = json.loads((tmp_path / "genai_config.json").read_text())
    assert config["model"]["decoder"]["inputs"]["position_ids"] == "position_ids"
    assert config["search"]["past_present_share_buffer"] is False
    assert config["model"]["eos_token_id"] == [2, 3]
    assert "bos_token_id" not in config["model"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").symlink_to("/dev/full")
    with pytest.raises(ExportError, match="No space left"):
        write_genai_config(DECODER, SpecialTokens(None, (2,), 2), tmp_path)


def test_refuses_to_write_over_something(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "note").touch()
    with pytest.raises(ExportError, match="is not empty"):
        export_checkpoint(tiny_checkpoint, tmp_path, "fp32", 32, CONTEXT, ignore)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_onnxruntime_genai_generates_the_same(
    tiny_checkpoint: Path, tmp_path: Path, precision: Precision
) -> None:
    """Greedy tokens of onnxruntime-genai and of a bare loop over the same folder."""
    genai = pytest.importorskip("onnxruntime_genai", reason="pip install onnxruntime-genai to run this")
    out = exported(tiny_checkpoint, tmp_path / "out", precision)
    prompt, new = np.array([5, 60, 7, 100, 9], np.int32), 24
    model = genai.Model(str(out))
    parameters = genai.GeneratorParams(model)
    length = len(prompt) + new
    parameters.set_search_options(max_length=length, min_length=length)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    assert list(generator.get_sequence(0)) == greedy(out, list(map(int, prompt)), length)
    assert list(genai.Tokenizer(model).encode("open the window")) == encoded(out, "open the window")


def greedy(out: Path, tokens: list[int], length: int) -> list[int]:
    """The most probable continuation, end of text excluded, each from an empty cache."""
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    cache = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), types[value.type])
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    while len(tokens) < length:
        inputs = {"input_ids": np.array([tokens]), "attention_mask": np.ones((1, len(tokens)), np.int64)}
        (logits,) = session.run(["logits"], inputs | cache)
        logits[0, 0, 2] = -np.inf
        tokens = [*tokens, int(logits[0, 0].argmax())]
    return tokens


def encoded(out: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(out / "tokenizer.json")).encode(text, add_special_tokens=False).ids
