"""Calibration: what is measured, what is read back, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from export.calibration import ACTIVATIONS, Calibration
from pipeline.calibrate import calibrate
from pipeline.data.records import read_records
from pipeline.data.render import render
from runtime.calls import load_tools
from runtime.errors import CheckpointError, DataError, ExportError

SYSTEM = "Turn the request into vehicle function calls."
HIDDEN = 64


def silent(message: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def data(tiny_tools_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    shutil.copyfile(tiny_tools_file, folder / "tools.json")
    lines = [
        {
            "id": f"t{celsius}",
            "utterance": f"set the driver side to {celsius} degrees",
            "calls": [
                {"name": "climate_set_temperature", "arguments": {"zone": "driver", "celsius": celsius}}
            ],
            "lang": "en",
        }
        for celsius in range(16, 28)
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def calibration(tiny_checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    figures = calibrate(tiny_checkpoint, [data], SYSTEM, 10, folder, silent)
    assert figures["conversations"] == 10
    assert figures["tokens"] > 300
    return folder


def test_what_is_noted_is_what_gate_and_up_read(tiny_checkpoint: Path, data: Path, calibration: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    tokenizer, tools = AutoTokenizer.from_pretrained(tiny_checkpoint), load_tools(data / "tools.json")
    read: list[torch.Tensor] = []
    model.model.layers[1].mlp.up_proj.register_forward_pre_hook(lambda module, args: read.append(args[0][0]))
    with torch.inference_mode():
        for record in read_records(data / "train.jsonl")[:10]:
            example = render(record, tokenizer, tools, SYSTEM)
            model(torch.tensor([[*example.prompt, *example.answer]]))
    loudest = torch.cat(read).abs().amax(dim=0).numpy()
    found = Calibration(calibration).loudest("layers.1.mlp.input", HIDDEN)
    np.testing.assert_allclose(found, loudest, rtol=1e-5)


def test_what_is_noted_of_a_cache_is_what_it_holds(
    tiny_checkpoint: Path, data: Path, calibration: Path
) -> None:
    """Keys behind their rotation, computed here from what the projections put out."""
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    tokenizer, tools = AutoTokenizer.from_pretrained(tiny_checkpoint), load_tools(data / "tools.json")
    attention = model.model.layers[1].self_attn
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []

    def rotated(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
        plain = output[0].unflatten(-1, (2, 16))  # (S, K, D)
        angles = torch.arange(len(plain))[:, None] * 10_000.0 ** (-torch.arange(0, 16, 2) / 16)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        first, second = plain[..., :8], plain[..., 8:]
        keys.append(torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(1))

    attention.k_proj.register_forward_hook(rotated)
    attention.v_proj.register_forward_hook(lambda module, args, output: values.append(output[0]))
    with torch.inference_mode():
        for record in read_records(data / "train.jsonl")[:10]:
            example = render(record, tokenizer, tools, SYSTEM)
            model(torch.tensor([[*example.prompt, *example.answer]]))
    read = Calibration(calibration)
    for part, rows in (("keys", keys), ("values", values)):
        loudest = torch.cat(rows).abs().amax(dim=0).numpy()
        np.testing.assert_allclose(read.loudest(f"layers.1.{part}", 32), loudest, rtol=1e-4)


def test_the_same_conversations_give_the_same_bytes(
    tiny_checkpoint: Path, data: Path, calibration: Path, tmp_path: Path
) -> None:
    calibrate(tiny_checkpoint, [data], SYSTEM, 10, tmp_path, silent)
    assert (tmp_path / ACTIVATIONS).read_bytes() == (calibration / ACTIVATIONS).read_bytes()


def test_a_checkpoint_that_gives_no_numbers_is_refused(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    broken, out = tmp_path / "broken", tmp_path / "out"
    shutil.copytree(tiny_checkpoint, broken)
    out.mkdir()
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"][:] = np.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"NaN or infinite numbers, first in layers\.0\."):
        calibrate(broken, [data], SYSTEM, 10, out, silent)
    assert not any(out.iterdir())


def test_too_few_different_conversations_are_refused(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="3 different ones, and calibration needs 8"):
        calibrate(tiny_checkpoint, [data], SYSTEM, 3, tmp_path, silent)
    line = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "train.jsonl").write_text("\n".join([line] * 20), encoding="utf-8")
    with pytest.raises(DataError, match="1 different"):
        calibrate(tiny_checkpoint, [tmp_path], SYSTEM, 20, tmp_path, silent)


def test_a_checkpoint_that_is_none_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot load"):
        calibrate(tmp_path, [data], SYSTEM, 10, tmp_path, silent)


def test_a_folder_without_activations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cockpit calibrate"):
        Calibration(tmp_path)


def test_a_truncated_file_is_refused(calibration: Path, tmp_path: Path) -> None:
    content = (calibration / ACTIVATIONS).read_bytes()
    (tmp_path / ACTIVATIONS).write_bytes(content[:-100])
    with pytest.raises(ExportError, match=r"activations\.safetensors"):
        Calibration(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(32, np.float32), "of 64 channels in float32"),
        (np.ones((2, HIDDEN), np.float32), "of 64 channels in float32"),
        (np.ones(HIDDEN, np.float16), "of 64 channels in float32"),
        (np.full(HIDDEN, np.nan, np.float32), "NaN or infinite"),
        (np.full(HIDDEN, np.inf, np.float32), "NaN or infinite"),
    ],
)
def test_activations_of_no_use_are_refused(
    calibration: Path, tmp_path: Path, values: NDArray[np.generic], message: str
) -> None:
    tensors = load_file(calibration / ACTIVATIONS)
    tensors["layers.0.mlp.input"] = values
    save_file(tensors, tmp_path / ACTIVATIONS)
    with pytest.raises(ExportError, match=message):
        Calibration(tmp_path).loudest("layers.0.mlp.input", HIDDEN)
    Calibration(tmp_path).loudest("layers.1.mlp.input", HIDDEN)
    with pytest.raises(ExportError, match=r'no "layers\.2\.'):
        Calibration(tmp_path).loudest("layers.2.mlp.input", HIDDEN)
